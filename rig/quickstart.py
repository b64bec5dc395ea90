"""The whole loop on the toy model, each step the command that a person would type.

Nothing is measured here: the figures are what the commands print with `--json`. Each finished step is kept in
`quickstart.json` of the run folder, so that an interrupted loop goes on where it was. Knows no room.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from rig.atomic import write_text
from rig.errors import RigError
from rig.runs import Run
from rig.server import connect

RECIPE = "toy-arithmetic"
BIG = "llama-3.1-8b-gsm8k-12gb"
PROBLEMS = 200
SAMPLES = 5
SERVED = "Q8_0"
"""The type that is exported last, so that `rig serve RUN` takes it."""
REAL_PAGE = "https://en.wikipedia.org/wiki/GGUF"
"""What `--real` summarises where no article is named."""
QUESTION = "Mia has 17 apples. She buys 25 more apples. How many apples does Mia have now?"

Result = dict[str, Any]


def run_quickstart(
    name: str,
    *,
    seed: int,
    fresh: bool,
    as_json: bool,
    card: str | None = None,
    article: str | None = None,
    real: bool = False,
) -> None:
    """Go through the loop in `runs/<name>` and print what came out (text, or one JSON object)."""
    loop = QuickstartLoop(Path("runs") / name, seed)
    if fresh and loop.folder.exists():
        shutil.rmtree(loop.folder)
    loop.echo_line(
        f"The whole loop on the toy model ({_parameters()} million parameters). It is a toy with "
        "three small trades:\nit shows the way, not the quality. The same with Llama 3.1 8B on a 12 GB "
        f"GPU: rig train {BIG}"
    )
    try:
        results = {
            **_teach(loop, seed),
            **_work(loop, card, _real(loop, article) if real else article),
        }
    finally:
        loop.stop_server()
    found = collect_results(results, loop.step_seconds())
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_results(found, results["eval"])


class QuickstartLoop:
    """Runs commands as children, shows each before it runs, and remembers what they found."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.file = folder / "quickstart.json"
        self.state: Result = {"seed": seed, "steps": {}}
        if self.file.exists():
            try:
                kept = json.loads(self.file.read_text("utf-8"))
            except ValueError:
                kept = {}
            if kept.get("seed") == seed:
                self.state = kept
            elif kept:
                raise RigError(
                    f"{folder} holds a quickstart with seed {kept.get('seed')}: add --fresh to begin anew, "
                    "or give another --name."
                )

    def echo_line(self, text: str) -> None:
        """A line for the person; stdout belongs to the result."""
        click.echo(text, err=True)

    def run_step(self, name: str, why: str, *command: str) -> Result:
        """Run `rig *command --json` unless it is done already, and return the object it printed."""
        if name in self.state["steps"]:
            self.echo_line(f"\n# {why}: done before")
            return dict(self.state["steps"][name]["result"])
        self.echo_line(f"\n# {why}\n$ rig {shlex.join(command)}")
        start = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "rig", *command, "--json"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            printed, _ = child.communicate()
        except KeyboardInterrupt:
            child.wait(30)  # it got the Ctrl-C as well, and saves
            raise
        if child.returncode == 130:
            raise KeyboardInterrupt
        if child.returncode:
            raise RigError(
                f"`rig {shlex.join(command)}` failed (its own words stand above). "
                "Run `rig quickstart` again: what is done is kept."
            )
        result = json.loads(printed)
        self.save_step(name, result, time.monotonic() - start)
        return dict(result)

    def save_step(self, name: str, result: Result, seconds: float) -> None:
        """Remember a finished step."""
        self.state["steps"][name] = {"result": result, "seconds": round(seconds, 1)}
        write_text(self.file, json.dumps(self.state, indent=2, ensure_ascii=False) + "\n")

    def step_seconds(self) -> dict[str, float]:
        """How long each step took, also those of an earlier start."""
        return {name: step["seconds"] for name, step in self.state["steps"].items()}

    def start_server(self) -> str:
        """Start the server of this run's newest GGUF and return its address."""
        self.echo_line(
            f"\n# Serve it over HTTP; what asks for it starts it, as `rig serve {self.folder}` would"
        )
        start = time.monotonic()
        with connect.connect_model(model=str(self.folder)) as client:
            client.model_info()
            self.echo_line(f"{client.url} answers")
        self.save_step("serve", {"url": client.url}, time.monotonic() - start)
        return client.url

    def stop_server(self) -> None:
        """Ask the server that this loop started to leave."""
        found = connect.find_running_server(str(self.folder))
        if found and "pid" in found:
            os.kill(int(found["pid"]), signal.SIGTERM)


def _teach(loop: QuickstartLoop, seed: int) -> Result:
    """Train, judge before and after, export; each step's own object by its name."""
    name = loop.folder.name
    begun = (loop.folder / "run.json").exists() and "train" not in loop.state["steps"]
    if begun and Run.open(loop.folder).state in ("planned", "training"):
        arguments = ["train", "--resume", str(loop.folder)]
    else:
        arguments = ["train", RECIPE, "--name", name, "--set", f"schedule.seed={seed}"]
    run = str(loop.folder)
    return {
        "train": loop.run_step("train", "Teach: GRPO moves a LoRA towards reasoning", *arguments),
        "eval": loop.run_step(
            "eval",
            f"Judge: {PROBLEMS} held-out problems, before and after",
            "eval",
            run,
            "--n",
            str(PROBLEMS),
        ),
        "export": loop.run_step(
            "export",
            "Export: base and adapter become one quantised file, and the file is checked",
            *("export", run, "--gguf", "--quant", f"F16,Q4_K_M,{SERVED}"),
        ),
    }


def _real(loop: QuickstartLoop, article: str | None) -> str:
    """Fetch the real cards, and say which page is summarised."""
    loop.run_step("cards", "Bring the real cards", "bot", "refresh")
    return article or REAL_PAGE


def _work(loop: QuickstartLoop, card: str | None, article: str | None) -> Result:
    """Serve the file and let it work; each step's own object by its name."""
    needed = ("gguf", "ask", "card", "summary")
    url = "" if all(name in loop.state["steps"] for name in needed) else loop.start_server()
    run = str(loop.folder)
    card_options = ["--card", card] if card else []
    return {
        "gguf": loop.run_step(
            "gguf",
            "Judge the file through its server with the same problems",
            *("eval", run, "--n", str(PROBLEMS), "--url", url),
        ),
        "ask": loop.run_step("ask", "Ask", "ask", QUESTION, "--url", url),
        "card": loop.run_step(
            "card",
            "Draft a post about a card",
            "bot",
            "preview",
            "cards",
            *card_options,
            "--url",
            url,
        ),
        "summary": loop.run_step(
            "summary", "Summarise an article", "summarise", article or "sample", "--url", url
        ),
    }


def collect_results(results: Result, seconds: dict[str, float]) -> Result:
    """The one stable object of `rig quickstart --json`, put together from the steps' own."""
    labels = results["eval"]["labels"]
    before, after = labels["before"], labels["after"]
    agreement = results["gguf"]["comparisons"][0]["agreement"]
    served = results["gguf"]["labels"]["served"]
    smallest = {file["quant"]: file["bytes"] for file in results["export"]["files"]}
    card, article = results["card"], results["summary"]
    shares = {
        "accuracy_before": before["lenient"],
        "accuracy_after": after["lenient"],
        "accuracy_gguf": served["lenient"],
        "format_before": before["format"],
        "format_after": after["format"],
        "format_gguf": served["format"],
    }
    return {
        **{name: found["share"] for name, found in shares.items()},
        "n": after["n"],
        "interval": {name: found["interval"] for name, found in shares.items()},
        "gguf_agreement": agreement["answers"],
        "gguf_same_text": agreement["texts"],
        "gguf_bytes": smallest[SERVED],
        "gguf_files": smallest,
        "tokens_per_second": round(results["ask"]["timings"]["predicted_per_second"], 1),
        "tweet": card["post"],
        "tweet_weighted_length": card["weighted_length"],
        "tweet_accepted": card["accepted"],
        "card": card["card"],
        "summary": article["summary"],
        "article": article["title"],
        "seconds": round(sum(seconds.values()), 1),
        "stages": seconds,
    }


def print_results(found: Result, judged: Result) -> None:
    """The short table and five questions side by side, on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title="What was learnt", title_justify="left", box=None, padding=(0, 3, 0, 0))
    for head in ("", "before", "after", "GGUF, served"):
        table.add_column(head)
    rows = (("right answers", "accuracy"), ("thought first, in the taught form", "format"))
    for words, key in rows:
        names = [f"{key}_{label}" for label in ("before", "after", "gguf")]
        table.add_row(words, *(_share(found[n], found["interval"][n]) for n in names))
    console.print(table)
    console.print(
        f"\nFile and adapter give the same answer to {found['gguf_agreement']:.1%} of {found['n']} problems. "
        f"{found['gguf_bytes'] / 1e6:.1f} MB, {found['tokens_per_second']:.0f} tokens per second here."
    )
    sides = Table(title="\nThe same questions", title_justify="left", show_lines=True)
    for head, ratio in (("question", 2), ("before", 1), ("after", 2)):
        sides.add_column(head, ratio=ratio)
    for sample in [s for s in judged["samples"] if s["counted"]][:SAMPLES]:
        replies = [_reply(sample["replies"][label]) for label in ("before", "after")]
        sides.add_row(f"{sample['question']}\n[dim]gold: {sample['gold']}[/]", *replies)
    console.print(sides)
    console.print(f"\nA post about {found['card']} ({found['tweet_weighted_length']} of 280):")
    console.print(f"  {found['tweet']}", markup=False)
    console.print(f"\nA summary of {found['article']!r}:")
    console.print(f"  {found['summary']}", markup=False)
    console.print(
        f"\n{found['seconds']:.0f} seconds in all. A toy, as was said; with Llama 3.1 8B on a 12 GB GPU:\n"
        f"  rig train {BIG} --name reason\n  rig export reason --gguf\n  rig serve reason"
    )


def _share(share: float, interval: list[float]) -> str:
    return f"{share:.1%}  [dim]({interval[0]:.0%} to {interval[1]:.0%})[/]"


def _reply(reply: Result) -> str:
    from rich.markup import escape

    mark = "[green]right[/]" if reply["lenient"] else "[red]wrong[/]"
    return f"{escape(reply['text'].strip())}\n{mark}"


def _parameters() -> str:
    weights = Path(__file__).parent / "toy" / "model.safetensors"
    return f"{weights.stat().st_size / 2e6:.1f}"
