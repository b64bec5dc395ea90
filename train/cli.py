"""The commands of the room `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rig.options import json_option


@click.command()
@click.argument("recipe", required=False)
@click.option(
    "--name", metavar="NAME", help="Name of the run folder under runs/; else the recipe's."
)
@click.option("--list", "list_them", is_flag=True, help="List the recipes that ship.")
@click.option("--plan", is_flag=True, help="Say what it will cost, and train nothing.")
@click.option("--resume", metavar="RUN", help="Go on with a run from its newest checkpoint.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting of the recipe, such as schedule.max_steps=20; may be given often.",
)
@click.option("--gpus", type=click.IntRange(min=1), default=1, help="GPUs to train on together.")
@json_option
def train(
    recipe: str | None,
    name: str | None,
    list_them: bool,
    plan: bool,
    resume: str | None,
    settings: tuple[str, ...],
    gpus: int,
    as_json: bool,
) -> None:
    """Teach a model to reason by GRPO: a recipe becomes an adapter in runs/NAME.

    RECIPE is the name of one that ships (--list) or a TOML file of your own. The run folder holds the
    adapter, the log, samples, checkpoints and report.html. Ctrl-C saves; --resume goes on.
    """
    import json

    from train import recipe as recipes
    from train import run

    if list_them:
        found = {one: recipes.load_recipe(one).about for one in recipes.list_recipes()}
        lines = [f"{one:<28}{about}" for one, about in found.items()]
        click.echo(json.dumps(found) if as_json else "\n".join(lines))
        return
    if resume is not None:
        if recipe is not None:
            raise click.UsageError("--resume takes the recipe of the run: leave RECIPE out.")
        from rig.runs import Run, find_run

        print_outcome(run.resume_run(Run.open(find_run(resume)), settings), as_json)
        return
    if recipe is None:
        raise click.UsageError(
            f"Name a recipe: {', '.join(recipes.list_recipes())}, or a TOML file."
        )
    resolved = recipes.load_recipe(recipe, settings)
    if plan:
        from train.plan import plan as plans

        click.echo(plans.format_plan(plans.make_plan(resolved, gpus=gpus), recipe, as_json=as_json))
        return
    if name and (Path(name).name != name or name.startswith(".")):
        raise click.UsageError(
            f"--name {name}: give a name, not a path; the run goes to runs/NAME."
        )
    folder = Path("runs") / (name or free_run_name(Path(recipe).stem))
    print_outcome(run.start_run(resolved, folder, gpus=gpus), as_json)


@click.command("eval")
@click.argument("target", metavar="[RUN|MODEL]", required=False)
@click.option("--only", type=click.Choice(["before", "after"]), help="Judge one label of a run.")
@click.option("--url", metavar="URL", help="Judge the server there (any OpenAI-compatible one).")
@click.option("--api-key-file", type=click.Path(dir_okay=False), help="File with the server's key.")
@click.option("--ask-for", metavar="NAME", help="Model to ask that server for; else its first.")
@click.option("--label", metavar="NAME", help="Keep the figures under that name; else served.")
@click.option("--recipe", metavar="RECIPE", help="Whose held-out problems to put to a MODEL.")
@click.option("--n", type=click.IntRange(min=1), default=200, help="Held-out problems.")
@click.option("--pass-at", type=click.IntRange(min=0), default=0, help="Attempts each (0 = none).")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest reply; else the recipe's.")
@click.option("--temperature", type=click.FloatRange(0, 10), default=0.0, help="0 = greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="1 = off.")
@click.option("--seed", type=int, default=3407, help="Of the sampling; greedy needs none.")
@click.option("--batch", type=click.IntRange(min=1), help="Problems at once; else the recipe's.")
@click.option(
    "--parallel", type=click.IntRange(min=1), default=4, help="Questions to a server at once."
)
@json_option
def evaluate(
    target: str | None,
    recipe: str | None,
    url: str | None,
    api_key_file: str | None,
    ask_for: str | None,
    parallel: int,
    max_tokens: int | None,
    temperature: float,
    top_p: float,
    seed: int,
    as_json: bool,
    **asked: Any,
) -> None:
    """Judge before and after on the same held-out problems, strict and lenient.

    A RUN is judged without and with its adapter. A MODEL is `toy`, a folder, a hub id or a GGUF.
    With --url the server there is judged by the same rod, and compared with the run's adapter.
    """
    from rich.console import Console

    from rig.options import read_api_key
    from train.eval import runner, tables
    from train.eval.models import SamplingParams

    if target is None and url is None:
        raise click.UsageError("Name a run folder or a model, or give --url.")
    if target is not None and recipe is not None and runner.find_run_recipe(target):
        raise click.UsageError("A run brings its own problems: leave --recipe out.")
    found = runner.run_eval(
        target,
        recipe_name=recipe,
        sampling=SamplingParams(max_tokens or 0, temperature, top_p, seed),
        endpoint=runner.Endpoint(url, read_api_key(api_key_file), ask_for, parallel),
        tell=tables.print_progress,
        **asked,
    )
    if as_json:
        import json

        click.echo(json.dumps(found, ensure_ascii=False))
        return
    tables.print_tables(found, Console(highlight=False))


@click.command()
@click.option(
    "--check",
    metavar="RECIPE|REWARD",
    help="Try this recipe's rewards on gold and damage, or one reward on cheap replies that it brings.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting of the recipe."
)
@click.option("--samples", metavar="RUN|FILE", help="Real completions: a run, or a samples.jsonl.")
@click.option(
    "--attempts", type=click.IntRange(min=2), default=4, help="Completions sampled per problem."
)
@click.option("--real/--no-real", default=True, help="Try completions that the model really gives.")
@json_option
def rewards(
    check: str | None,
    settings: tuple[str, ...],
    samples: str | None,
    attempts: int,
    real: bool,
    as_json: bool,
) -> None:
    """List the rewards with a line each, or try those of a recipe before a run does.

    A check fails (exit 1) when a gold answer misses the top mark, or damage is paid as well as gold.
    """
    import json

    from rich.console import Console

    if check is None:
        from train.rewards.binding import list_rewards

        found = list_rewards()
        if as_json:
            click.echo(json.dumps({"rewards": found}, ensure_ascii=False))
            return
        lines = click.HelpFormatter(max_width=110)
        lines.write_dl(list(found.items()))
        click.echo(lines.getvalue(), nl=False)
        return
    from train import recipe as recipes
    from train.rewards import lint_command
    from train.rewards.binding import list_rewards

    if check not in recipes.list_recipes() and check in list_rewards():
        tried = lint_command.lint_reward(check)
    else:
        tried = lint_command.lint_recipe(
            recipes.load_recipe(check, settings), samples=samples, attempts=attempts, real=real
        )
    if as_json:
        click.echo(json.dumps(tried, ensure_ascii=False))
    else:
        lint_command.print_lint_report(tried, Console(highlight=False))
    if not tried["ok"]:
        click.get_current_context().exit(1)


COMMANDS: list[click.Command] = [train, evaluate, rewards]


def free_run_name(stem: str) -> str:
    """`stem`, or the first of `stem-2`, `stem-3`, ... that names no run yet."""
    from rig.runs import RECORD

    names = [stem, *(f"{stem}-{number}" for number in range(2, 10_000))]
    return next(name for name in names if not (Path("runs") / name / RECORD).exists())


def print_outcome(found: dict[str, Any], as_json: bool) -> None:
    """Print what a run came to, and what can be done with it."""
    if as_json:
        import json

        click.echo(json.dumps(found, default=str))
        return
    from train.run import outcome_lines

    click.echo("\n".join(outcome_lines(found)))
