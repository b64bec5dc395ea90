"""What reading a long text costs, beside the usual way, in the same run: `python benchmarks/summarise.py`.

12,000 words, a context of 4,096 tokens, the toy model as Q8_0 on two threads. Two contenders take turns,
each with its model loaded and warm, the same parts and the same questions:

  rig     `rig summarise FILE` (the whole command) against `rig serve`
  usual   one part after another, then the notes, through llama-cpp-python's create_chat_completion

Then rig is asked for another length and focus, and for the same again. Prints seconds, the tokens that the
server computed beside those of text, instruction and joints, and the ratios. `--small` measures the small
claims instead: `--extract` of a saved page, a second run from the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from bots.articles import chunks
from bots.articles.prompts import summary_messages
from bots.articles.request import NOTES, SummaryRequest
from bots.articles.summarise import NOTE_TOKENS
from bots.articles.token_budget import TokenBudget
from bots.documents.sanitise import clean_paragraphs, defuse_marks
from rig.server.client import ModelClient

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT.parent / "shared/data/articles/long/the_time_machine.txt"
WORDS = 12_000
RIG = [sys.executable, "-P", "-m", "rig"]

USUAL = """
import json, sys, time
from llama_cpp import Llama
asked = json.load(sys.stdin)
llm = Llama(asked["model"], n_ctx=4096, n_threads=asked["threads"], n_batch=512, verbose=False)
def ask(messages, size):
    said = llm.create_chat_completion(messages, max_tokens=size, temperature=0)
    return said["choices"][0]["message"]["content"].strip()
ask([{"role": "user", "content": "Hello"}], 8)
start = time.monotonic()
notes = [ask(messages, asked["note"]) for messages in asked["parts"]]
last = asked["last"]
last[1]["content"] = last[1]["content"].replace("NOTES", "\\n\\n".join(notes))
ask(last, asked["size"])
print(json.dumps({"seconds": time.monotonic() - start}))
"""


def main() -> None:
    """Let the contenders take turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rig-benchmark-") as folder:
        if asked.small:
            small(Path(folder))
        else:
            long(Path(folder), asked.rounds, asked.threads)


def long(folder: Path, rounds: int, threads: int) -> None:
    """The 12,000 words."""
    model = folder / "toy.gguf"
    export = ["export", "toy", "--gguf", "--quant", "Q8_0", "--no-check", "--out", str(model)]
    subprocess.run([*RIG, *export], check=True, stderr=subprocess.DEVNULL)
    file = folder / "long.txt"
    file.write_text(text())
    measured: list[dict[str, Any]] = []
    for at in range(rounds):
        home = folder / f"home{at}"
        with Server(model, home, threads) as server:
            if at == 0:
                plan = planned(server.url, file.read_text())
            usual = {} if at % 2 == 0 else the_usual_way(model, plan, threads)
            found = with_rig(server, file)
        usual = usual or the_usual_way(model, plan, threads)
        measured.append(found | {"usual": usual["seconds"]})
        print(json.dumps(measured[-1]), file=sys.stderr)
    show(measured, plan)


def text() -> str:
    """12,000 words of prose: a novel where it is at hand, else made up."""
    if BOOK.is_file():
        whole = BOOK.read_text("utf-8-sig")
        whole = whole[whole.index("The Time Traveller (for so") :]
        return whole[: list(re.finditer(r"\S+", whole))[WORDS - 1].end()]
    made = [
        f"On day {n} the keeper of the lamp wrote down what he saw from the tower."
        for n in range(WORDS // 15)
    ]
    return "\n\n".join(" ".join(made[at : at + 5]) for at in range(0, len(made), 5))


class Server:
    """`rig serve` with nothing kept from before, warm."""

    def __init__(self, model: Path, home: Path, threads: int) -> None:
        self.environment = os.environ | {"RIG_HOME": str(home)}
        command = ["serve", str(model), "--port", "0", "--threads", str(threads)]
        self._process = subprocess.Popen(
            [*RIG, *command],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        said = ""
        for line in self._process.stderr:
            said += line
            if found := re.search(r"http://[\d.]+:\d+", line):
                self.url = found[0]
                break
        else:
            raise SystemExit(f"rig serve did not start: {said}")
        with ModelClient(self.url) as client:
            while not client.is_ready():
                time.sleep(0.1)
            client.chat([{"role": "user", "content": "Hello"}], max_tokens=8, temperature=0)

    def counters(self) -> dict[str, int]:
        """Tokens by kind so far."""
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            told = answer.read().decode()
        names = ("prompt_tokens", "cached_tokens", "generated_tokens")
        found = {
            n: re.search(rf"^rig_serve_{n}_total ([\d.e+]+)$", told, re.MULTILINE) for n in names
        }
        return {name: int(float(match[1])) if match else 0 for name, match in found.items()}

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        assert self._process.stderr is not None
        self._process.stderr.close()


def planned(url: str, content: str) -> dict[str, Any]:
    """The requests that rig will make, for the other contender, and what they should cost at least."""
    with ModelClient(url) as client:
        token_budget = TokenBudget(client)
        whole = defuse_marks(clean_paragraphs(content))
        parts = chunks.split_text(
            whole, token_budget.text_tokens(NOTES, NOTE_TOKENS), token_budget.count_tokens
        )
        request = SummaryRequest()
        return {
            "parts": [summary_messages(part, NOTES) for part in parts],
            "last": summary_messages("NOTES", request.task_sentence()),
            "note": NOTE_TOKENS,
            "size": request.max_tokens,
            "text": token_budget.count_tokens(whole),
            "instruction": token_budget.framing_tokens(NOTES),
            "prompts": sum(
                client.count_chat_tokens(summary_messages(part, NOTES)) or 0 for part in parts
            ),
        }


def with_rig(server: Server, file: Path) -> dict[str, Any]:
    """The first reading, another length and focus, and the first again."""
    first, computed = timed(server, file)
    other, _ = timed(server, file, "--length", "5", "--focus", "the machine")
    again, _ = timed(server, file)
    return {"first": first, "other": other, "again": again, "tokens": computed}


def timed(server: Server, file: Path, *options: str) -> tuple[float, dict[str, int]]:
    """Seconds of the whole command, and what the server counted."""
    before = server.counters()
    command = [*RIG, "summarise", str(file), "--url", server.url, "--quiet", "--json", *options]
    start = time.monotonic()
    done = subprocess.run(command, env=server.environment, check=True, capture_output=True)
    seconds = time.monotonic() - start
    found = json.loads(done.stdout)
    after = server.counters()
    return seconds, {name: after[name] - before[name] for name in after} | found["tokens_computed"]


def the_usual_way(model: Path, plan: dict[str, Any], threads: int) -> dict[str, Any]:
    """One after another, in a process of its own."""
    asked = json.dumps(plan | {"model": str(model), "threads": threads})
    done = subprocess.run(
        [sys.executable, "-c", USUAL], input=asked, capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def show(measured: list[dict[str, Any]], plan: dict[str, Any]) -> None:
    """The table."""
    median = {
        n: statistics.median(m[n] for m in measured) for n in ("first", "other", "again", "usual")
    }
    ratios = sorted(m["usual"] / m["first"] for m in measured)
    tokens = measured[0]["tokens"]
    faster = median["first"] / median["other"]
    rows = [
        ("rig summarise, first time", f"{median['first']:.2f} s"),
        ("the usual way", f"{median['usual']:.2f} s"),
        ("usual / rig, round by round", ", ".join(f"{ratio:.2f}" for ratio in ratios)),
        ("another length and focus", f"{median['other']:.2f} s, {faster:.1f} times faster"),
        ("the same again", f"{median['again']:.2f} s"),
        ("tokens in the prompts of the parts", f"{plan['prompts']:,}"),
        ("of these, text", f"{plan['text']:,}"),
        ("one instruction with its template", f"{plan['instruction']:,}"),
        ("computed for the parts", f"{tokens['parts']:,}"),
        ("computed for the notes", f"{tokens['whole']:,}"),
        ("by the server's own /metrics, together", f"{tokens['prompt_tokens']:,}"),
        ("taken from its cache", f"{tokens['cached_tokens']:,}"),
    ]
    print(f"{WORDS:,} words in {len(plan['parts'])} parts, {len(measured)} rounds")
    for name, value in rows:
        print(f"{name:42}{value}")


def small(folder: Path) -> None:
    """`--extract` of the bundled page, and a cached summary; medians of ten whole commands."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.counting_server import CountingServer

    environment = os.environ | {"RIG_HOME": str(folder)}
    page = str(ROOT / "bots/articles/samples/lighthouse.html")
    with CountingServer() as server:
        cases = {
            "--extract of a saved page, nothing cached": ["--extract", "--no-cache"],
            "--extract, from the cache": ["--extract"],
            "summary from the cache, --url": ["--url", server.url],
        }
        for name, options in cases.items():
            times, work = [], []
            for _ in range(11):
                start, used = time.monotonic(), processor()
                command = [*RIG, "summarise", page, *options]
                subprocess.run(command, env=environment, check=True, capture_output=True)
                times.append(time.monotonic() - start)
                work.append(processor() - used)
            wall, cpu = statistics.median(times[1:]), statistics.median(work[1:])
            print(
                f"{name:45} median {wall:.3f} s, best {min(times[1:]):.3f} s, processor {cpu:.3f} s"
            )


def processor() -> float:
    """Processor seconds of all children so far: what a busy machine does not add to."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
