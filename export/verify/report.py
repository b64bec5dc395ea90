"""What a check found, in words and figures; the same object in run.json, with `--json`, and as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from rig.errors import RigError

Json = dict[str, Any]


@dataclass
class CheckReport:
    """Filled in by the parts of the check; `tell` hears what each of them looks at, while it looks."""

    tell: Callable[[str], None]
    problems: list[str] = field(default_factory=list)
    """Sentences; any one of them fails the check."""
    notes: list[str] = field(default_factory=list)
    """What could not be looked at, or is worth a look."""
    tokens: Json = field(default_factory=dict)
    adapter: Json = field(default_factory=dict)
    files: dict[str, Json] = field(default_factory=dict)
    """By file name: type, distances, answers."""
    seconds: float = 0.0

    def file_figures(self, name: str) -> Json:
        """The figures of one file, to be filled in."""
        return self.files.setdefault(name, {})

    def to_json(self) -> Json:
        """The stable object."""
        return {
            "ok": not self.problems,
            "problems": self.problems,
            "notes": self.notes,
            "tokens": self.tokens,
            "adapter": self.adapter,
            "files": self.files,
            "seconds": round(self.seconds, 1),
        }

    def print_table(self, console: Console) -> None:
        """A short table, the notes below it."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("check", no_wrap=True)
        for head in (
            "KL to\n16 bit",
            "same\ntoken",
            "KL to\ntrained",
            "same\ntoken",
            "answers\nend",
        ):
            table.add_column(head, justify="right", no_wrap=True)
        for name, row in self.files.items():
            table.add_row(
                name,
                _figure(row.get("kl")),
                _share(row.get("top1")),
                _figure(row.get("trained_kl")),
                _share(row.get("trained_top1")),
                f"{row['ended']}/{row['asked']}" if "asked" in row else "-",
            )
        console.print(table)
        if self.tokens:
            console.print(
                f"{self.tokens['texts']} texts, {self.tokens['tokens']} tokens: "
                f"{self.tokens['different']} texts cut differently."
            )
        if "relative_change" in self.adapter:
            console.print(
                f"The adapter changes {self.adapter['tensors']} tensors, by "
                f"{self.adapter['relative_change']:.2%} on average."
            )
        if "four_bit_kl" in self.adapter:
            console.print(
                f"It was trained on a 4-bit base; on the 16-bit one it differs from that by KL "
                f"{_figure(self.adapter['four_bit_kl'])}, same token {_share(self.adapter['four_bit_top1'])}."
            )
        for note in self.notes:
            console.print(f"Note: {note}", soft_wrap=True)
        if not self.problems:
            console.print(f"Checked in {self.seconds:.0f} s: nothing is wrong.")

    def raise_on_problems(self) -> None:
        """End in a sentence when something is wrong."""
        if self.problems:
            raise RigError("The check failed. " + " ".join(self.problems))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
