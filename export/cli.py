"""The command of the room `export`."""

from __future__ import annotations

import json
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rig.errors import WrongUse
from rig.options import json_option

if TYPE_CHECKING:
    from export.job import ExportResult


@click.command()
@click.argument("model")
@click.option("--gguf", is_flag=True, help="Write one GGUF file for each --quant, and check it.")
@click.option("--quant", default="Q4_K_M", help="llama.cpp's names of types, separated by commas.")
@click.option(
    "--imatrix",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Text of your own kind to weigh the weights by, or an importance matrix file.",
)
@click.option("--no-check", is_flag=True, help="Leave the check out.")
@click.option("--modelfile/--no-modelfile", default=None, help="Modelfile for Ollama.  [in runs]")
@click.option("--merged", is_flag=True, help="Write a folder of merged 16-bit safetensors.")
@click.option("--adapter", is_flag=True, help="Write the adapter alone, as a GGUF LoRA.")
@click.option("--check", is_flag=True, help="Only check what was exported before.")
@click.option(
    "--adapter-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A PEFT adapter to add when MODEL is a model.",
)
@click.option("--base", help="16-bit base to use instead of the one that a run or adapter names.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File or folder to write (or to --check).  [default: in the run, else here]",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads.  [default: all processors]")
@json_option
def export(
    model: str,
    gguf: bool,
    quant: str,
    imatrix: Path | None,
    no_check: bool,
    modelfile: bool | None,
    merged: bool,
    adapter: bool,
    check: bool,
    adapter_dir: Path | None,
    base: str | None,
    out: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Turn a run or a model into files that run anywhere.

    MODEL is a run, a model folder, an adapter folder, a hub id, or `toy`. Base and adapter become
    one quantised GGUF in one pass: no merged copy, no llama.cpp checkout, no compiler, no torch. Then
    the file is held against what was trained.

    \b
    rig export my-run --gguf --quant Q4_K_M,Q8_0
    rig export Qwen/Qwen3-0.6B --gguf --imatrix notes.txt --out qwen.gguf
    """
    chosen = [name for name, on in (("gguf", gguf), ("merged", merged), ("adapter", adapter)) if on]
    if check and chosen:
        raise WrongUse(
            "--check alone checks what is there; --gguf checks what it writes by itself."
        )
    if not check and not chosen:
        raise WrongUse(
            "Say what to make: --gguf, --merged or --adapter (or --check what is there)."
        )
    if out is not None and len(chosen) > 1:
        raise WrongUse("--out names one place, and you ask for several things: give one at a time.")
    # Threads of ours use every processor already; NumPy's own would only fight them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from export import job as export_job
    from export.checkpoint.source import find_source
    from export.quantise import quant_types

    started = time.monotonic()
    quants = quant_types.parse_quant_types(quant)
    source = find_source(model, base=base, adapter=adapter_dir)
    with source.run.hold_lock() if source.run else nullcontext():
        here = source.run.path if source.run else Path()
        job = export_job.ExportJob(source, threads or os.cpu_count() or 1)
        if check:
            job.check_files(export_job.exported_files(source, out))
        if merged:
            job.write_merged(out or here / ("merged" if source.run else f"{source.name}-merged"))
        if adapter:
            job.write_lora(export_job.output_path(source, "lora", out, 1))
        if gguf:
            job.write_ggufs(
                {name: export_job.output_path(source, name, out, len(quants)) for name in quants},
                matrix=imatrix,
                check=not no_check,
                with_modelfile=bool(source.run) if modelfile is None else modelfile,
            )
    _show(job.result, time.monotonic() - started, as_json)
    if job.result.report is not None:
        job.result.report.raise_on_problems()


def _show(result: ExportResult, seconds: float, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result.to_json(seconds), ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for made in (*result.files, *([result.adapter] if result.adapter else [])):
        console.print(f"{made.path}  {made.quant}  {made.bytes / 1e6:,.1f} MB", markup=False)
    for path in filter(None, (result.merged, result.imatrix, result.modelfile)):
        console.print(str(path), markup=False)
    if result.report is not None:
        result.report.print_table(console)


COMMANDS: list[click.Command] = [export]
