"""What `rig eval` shows a person: one table of figures, one of replies side by side."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from train.eval.scoring import MEASURES

LONGEST = 400
"""Characters of a reply that are shown."""


def print_tables(found: dict[str, Any], console: Console) -> None:
    """Print the object of `rig eval --json` as tables."""
    problems = found["problems"]
    labels: dict[str, Any] = found["labels"]
    console.print(
        f"{problems['n']} held-out problems of {problems['source']}; {_sampling(labels)}."
    )
    console.print(_figures(labels, found["comparisons"]))
    for label, figures in labels.items():
        if passes := figures.get("pass_at"):
            console.print(_passes(label, passes))
    for change in found["comparisons"]:
        alike = change["agreement"]
        console.print(
            f"{change['from']} and {change['to']} give the same final answer to "
            f"{alike['answers']:.1%} of the problems, and the same text to {alike['texts']:.1%}."
        )
    console.print(_replies(found["samples"], list(labels)))
    for note in found["notes"]:
        console.print(note)


def print_progress(label: str, done: int, total: int) -> None:
    """Count answers on stderr: in place on a terminal, one line per label elsewhere."""
    moving = sys.stderr.isatty()
    if moving or done == total:
        end = "\n" if done == total else ""
        print(
            f"{chr(13) if moving else ''}{label}: {done} of {total} asked",
            end=end,
            file=sys.stderr,
            flush=True,
        )


def _sampling(labels: dict[str, Any]) -> str:
    first = next(iter(labels.values()))["sampling"]
    drawn = "greedy" if first["greedy"] else f"temperature {first['temperature']:g}"
    return f"{drawn}, at most {first['max_tokens']} tokens, 95% intervals"


def _figures(labels: dict[str, Any], comparisons: list[dict[str, Any]]) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for label in labels:
        table.add_column(label)
    for change in comparisons:
        table.add_column(f"{change['from']} to {change['to']}")
    for measure, words in MEASURES.items():
        cells = [_share(figures[measure]) for figures in labels.values()]
        table.add_row(words, *cells, *(_change(change[measure]) for change in comparisons))
    table.add_row("mean tokens", *(f"{figures['mean_tokens']:g}" for figures in labels.values()))
    table.add_row("cut off", *(f"{figures['cut_off']:.1%}" for figures in labels.values()))
    table.add_row("seconds", *(f"{figures['seconds']:g}" for figures in labels.values()))
    return table


def _share(figure: dict[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{figure['share']:.1%} ({low * 100:.1f}-{high * 100:.1f})"


def _change(figure: dict[str, Any]) -> str:
    p = "p<.001" if figure["p"] < 0.001 else f"p={figure['p']:.2g}"
    return f"{figure['difference']:+.1%} (+{figure['gained']} -{figure['lost']}) {p}"


def _passes(label: str, passes: dict[str, Any]) -> str:
    drawn = passes["sampling"]
    shares = ", ".join(f"pass@{k} {share:.1%}" for k, share in passes["lenient"].items())
    return (
        f"{label}, {passes['attempts']} attempts each at temperature {drawn['temperature']:g} "
        f"(right in any form): {shares}."
    )


def _replies(samples: list[dict[str, Any]], labels: list[str]) -> RenderableType:
    table = Table(show_lines=True, expand=False)
    table.add_column("question", ratio=2)
    for label in labels:
        table.add_column(label, ratio=3)
    for sample in samples:
        asked = Text(sample["question"] + "\n")
        asked.append(
            f"Gold: {sample['gold']}" if sample["counted"] else "Asked besides, not counted", "dim"
        )
        replies = [sample["replies"].get(label) for label in labels]
        table.add_row(asked, *(_reply(reply, sample["counted"]) for reply in replies))
    return table


def _reply(reply: dict[str, Any] | None, counted: bool) -> RenderableType:
    if reply is None:
        return Text("")
    text = reply["text"].strip()
    shown = Text(text if len(text) <= LONGEST else text[: LONGEST - 3] + "...")
    if not counted:
        return shown
    right = "right" if reply["strict"] else "right, form not kept" if reply["lenient"] else "wrong"
    return Group(shown, Text(right, "green" if reply["lenient"] else "red"))
