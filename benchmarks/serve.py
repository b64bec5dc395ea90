"""`rig serve` beside llama.cpp's own programs, in the same run: `python benchmarks/serve.py --llama FOLDER`.

The rivals are llama-bench and llama-server, built once from llama-cpp-python's source package, so that both
sides can run the same kernels (about 6 minutes on two cores):

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B llama -DGGML_NATIVE=ON -DLLAMA_CURL=OFF
    cmake --build llama -j2 --target llama-bench llama-server
    python benchmarks/serve.py --llama llama/bin

The rivals then load the very libraries that rig's Python package holds, so that no compiler flag stands
between them. Contenders take turns and the median of the paired ratios counts. While a turn is measured,
/proc says how much of the processor went to programs of others (and to other guests of the machine); a
turn in which that was more than OTHERS is taken again, whatever it had shown.

Parts (--only NAME, several times):

  one      one stream through HTTP against llama-bench: decode of 128 tokens, prefill of 512
  four     four streams at once against llama-server -np 4: total tokens per second, and the slowest one
  prefix   first token of a prompt whose first 1,000 tokens were seen before: at once, and after a restart
  json     decode with a JSON schema against decode without
  stall    the longest pause of a stream while another's 2,000-token prompt is read
  same     greedy text alone, among seven others, and llama-server's
  busy     one stream while another program keeps every core busy, against llama-server
  draft    with and without guessing ahead: the toy model, which copies, and one that says nonsense
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import serve_model
from benchmarks.serve_contenders import Contender, Race, Took, at_once, ratio

VISIBLE = {"1000": 100.0}
"""A bias for a token that is a whole word, so that each token shows at the client when it is written."""
SCHEMA = {
    "type": "object",
    "properties": {"post": {"type": "string", "minLength": 3000}},
    "required": ["post"],
    "additionalProperties": False,
}
BUSY = "while True: pass"
WORDS = "river stone lamp coat the of and a window under seven green walks paper".split()  # noqa: SIM905


def one(race: Race) -> None:
    """One stream: decode and prefill."""
    decode, prefill = [], []
    with race.rig("--no-draft") as rig:
        rig.ask(race.prompt(600), 32)
        for _ in range(race.asked.rounds):
            writes, reads = race.turn(race.bench)
            seen = race.turn(lambda: rig.ask(race.prompt(1), 128, logit_bias=VISIBLE))
            decode.append((seen.decode, writes))
            seen = race.turn(lambda: rig.ask(race.prompt(512), 2, logit_bias=VISIBLE))
            prefill.append((512 / seen.first, reads))
    race.note("one stream, decode", ">= 0.97", **ratio(decode))
    race.note("one stream, prefill", ">= 0.97", **ratio(prefill))


def four(race: Race) -> None:
    """Four streams at once: total, and the slowest."""
    total, fair = [], []

    def together(server: Contender) -> tuple[float, float]:
        jobs = [partial(server.ask, race.prompt(64), 128) for _ in range(4)]
        began = time.perf_counter()
        took = at_once(jobs)
        seconds = time.perf_counter() - began
        rates = [t.tokens / t.last for t in took]
        return sum(t.tokens for t in took) / seconds, min(rates) / statistics.mean(rates)

    with race.rig("--no-draft") as rig, race.llama(slots=4) as rival:
        for server in (rig, rival):
            server.ask(race.prompt(100), 16)
        for n in range(race.asked.rounds):
            found = {}
            for server in (rig, rival) if n % 2 else (rival, rig):
                found[server.name] = race.turn(partial(together, server))
            total.append((found["rig"][0], found["llama-server"][0]))
            fair.append(found["rig"][1])
    race.note("four at once, total", ">= 0.97", **ratio(total))
    race.note("four at once, slowest", "fair share", share=statistics.median(fair))


def prefix(race: Race) -> None:
    """First token of a prompt that begins as an earlier one did."""
    warm, again = [], []
    for _ in range(max(3, race.asked.rounds // 2)):
        common = race.prompt(1000)
        with race.rig(cache=True) as rig:
            rig.ask(race.prompt(40), 4)
            cold = rig.ask([*common, *race.prompt(24)], 2).first
            warm.append((rig.ask([*common, *race.prompt(24)], 2).first, cold))
        with race.rig(cache=True) as rig:
            rig.ask(race.prompt(40), 4)
            again.append((rig.ask([*common, *race.prompt(24)], 2).first, cold))
    race.note("shared 1,000 tokens", "<= 0.15 of cold", **ratio(warm))
    race.note("shared, after a restart", "<= 0.15 of cold", **ratio(again))


def json_schema(race: Race) -> None:
    """Decode with and without a schema."""
    form = {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}
    pairs: dict[str, list[tuple[float, float]]] = {"greedy": [], "sampled": []}
    with race.rig("--no-draft") as rig:
        rig.ask(race.prompt(20), 8, **form)
        for _ in range(race.asked.rounds):
            for name, how in (("greedy", {}), ("sampled", {"temperature": 0.8, "seed": 1})):
                bound = race.turn(partial(rig.ask, race.prompt(8), 96, **how, **form)).decode
                free = race.turn(partial(rig.ask, race.prompt(8), 96, **how)).decode
                pairs[name].append((bound, free))
    for name, found in pairs.items():
        race.note(f"JSON schema, {name}", ">= 0.9", **ratio(found))


def stall(race: Race) -> None:
    """The longest pause of a stream while a long prompt is read."""
    pauses: dict[str, list[float]] = {"rig": [], "llama-server": []}
    with race.rig("--no-draft") as rig, race.llama(slots=4) as rival:
        for server in (rig, rival):
            server.ask(race.prompt(600), 16)
        for _ in range(max(2, race.asked.rounds // 2)):
            for server in (rig, rival):

                def late(s: Contender = server) -> Took:
                    time.sleep(1.0)
                    return s.ask(race.prompt(2000), 2)

                writer, _ = at_once([partial(server.ask, race.prompt(8), 160), late])
                pauses[server.name].append(writer.longest)
    medians = {name: statistics.median(found) for name, found in pauses.items()}
    race.note("longest pause, seconds", "shorter", **medians)


def same(race: Race) -> None:
    """Greedy text: alone, among seven others, and by llama-server."""
    for option in ("--flash-attn", "--no-flash-attn"):
        prompts = [race.prompt(race.rng.randrange(20, 300)) for _ in range(8)]
        rival_option = ["-fa", "off"] if option.startswith("--no") else []
        with race.rig(option, "--parallel", "8") as rig:
            alone = [rig.ask(p, 64).text for p in prompts]
        with race.rig(option, "--parallel", "8") as rig:
            together = [t.text for t in at_once([partial(rig.ask, p, 64) for p in prompts])]
        with race.llama(*rival_option, ctx=4096) as rival:
            theirs = [rival.ask(p, 64, cache_prompt=False).text for p in prompts]
        race.note(
            f"same text, {option[2:]}",
            "identical, or explained",
            among_eight=sum(a == b for a, b in zip(alone, together, strict=True)),
            as_llama_server=sum(a == b for a, b in zip(alone, theirs, strict=True)),
            of=8,
        )


def busy(race: Race) -> None:
    """One stream while other programs want every core."""
    pairs = []
    with race.rig("--no-draft") as rig, race.llama() as rival:
        for server in (rig, rival):
            server.ask(race.prompt(20), 16)
        with _load(os.cpu_count() or 1):
            rig.ask(race.prompt(8), 32)
            for _ in range(race.asked.rounds):
                pairs.append(
                    (rig.ask(race.prompt(8), 24).decode, rival.ask(race.prompt(8), 24).decode)
                )
    race.note("one stream on a busy box", "not slower", **ratio(pairs))


def draft(race: Race) -> None:
    """With and without guessing ahead: the toy model, which copies, and the one that says nonsense."""
    for name, model in (("copying", race.toy()), ("nonsense", race.model)):
        with race.rig(model=model) as guess, race.rig("--no-draft", model=model) as plain:
            pairs = []
            for n in range(race.asked.rounds + 2):
                text = " ".join(race.rng.choice(WORDS) for _ in range(60))
                asked = f"{text}.\n\n{text}.\n\n{text[:40]}"
                found = [race.turn(partial(s.ask, asked, 160)).timings for s in (guess, plain)]
                if n >= 2:  # by then it has learnt what a guess costs here
                    with_, without = (timings["predicted_per_second"] for timings in found)
                    pairs.append((with_, without))
        race.note(f"guessing ahead, {name}", "not slower", **ratio(pairs))


@contextlib.contextmanager
def _load(n: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(n)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


PARTS = {
    "one": one, "four": four, "prefix": prefix, "json": json_schema, "stall": stall, "same": same,
    "busy": busy, "draft": draft,
}  # fmt: skip


def main() -> None:
    """Make the model if there is none, run the parts, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    llama = os.environ.get("RIG_LLAMA_BIN")
    parser.add_argument(
        "--llama", type=Path, default=llama, help="folder of llama-bench, llama-server"
    )
    parser.add_argument(
        "--model", type=Path, default=Path("/tmp/rig-benchmark-serve/1b-Q4_K_M.gguf")
    )
    parser.add_argument("--only", action="append", choices=list(PARTS), help="just this part")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.llama is None or not (asked.llama / "llama-server").exists():
        words = re.split(r"\n\n", __doc__)[1:3]
        sys.exit("llama.cpp's own programs are needed (--llama FOLDER):\n\n" + "\n\n".join(words))
    race = Race(asked, serve_model.make(asked.model))
    for name in asked.only or list(PARTS):
        PARTS[name](race)
    print(
        f"{race.turns} turns, {race.repeated} taken again, {race.crowded} crowded", file=sys.stderr
    )
    if asked.json:
        print(json.dumps(race.results))
        return
    print("| what | wanted | found |\n|---|---|---|")
    for name, row in race.results.items():
        figures = ", ".join(f"{k} {v}" for k, v in row.items() if k != "wanted")
        print(f"| {name} | {row['wanted']} | {figures} |")


if __name__ == "__main__":
    main()
