"""Lets `rig serve MODEL` stay a plain command, with a few words beside it: `rig serve install MODEL`.

A group would need the options under `[serve.run]` in rig.toml and hide them from `rig serve --help`.
A model called like a word is still served as `./install`.
"""

from __future__ import annotations

from typing import Any

import click


class CommandWithSubcommands(click.Command):
    """A command whose first argument may be one of its `subcommands`, each a command of its own."""

    subcommands: dict[str, click.Command]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.subcommands = {}

    def add_subcommand(self, command: click.Command) -> click.Command:
        """Add a command; used as a decorator above `@click.command()`."""
        assert command.name is not None
        self.subcommands[command.name] = command
        return command

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Hand over to the word that the first argument is."""
        word = self.subcommands.get(args[0]) if args else None
        if word is None:
            return super().make_context(info_name, args, parent, **extra)
        if parent is not None and parent.auto_envvar_prefix:
            extra["auto_envvar_prefix"] = (
                f"{parent.auto_envvar_prefix}_{self.name}_{word.name}".upper()
            )
        extra.setdefault("default_map", {})
        return word.make_context(f"{info_name} {word.name}", args[1:], parent, **extra)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the words below the options."""
        super().format_options(ctx, formatter)
        if not self.subcommands:
            return
        with formatter.section("Or, in place of MODEL"):
            formatter.write_dl([(n, c.get_short_help_str(60)) for n, c in self.subcommands.items()])

    def shell_complete(
        self, ctx: click.Context, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Offer the words too."""
        from click.shell_completion import CompletionItem

        words = [CompletionItem(n) for n in self.subcommands if n.startswith(incomplete)]
        return words + super().shell_complete(ctx, incomplete)
