"""Drives rig's file readers with damaged files: `python -m support.file_fuzz KIND COUNT SEED` in `tests/`.

Each kind has a seed in `tests/data/corpus`. A mutant must be read or refused with a sentence, within five
seconds and 300 MiB; the last line printed says how it went. A hang prints where, and ends the process.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click import ClickException

CORPUS = Path(__file__).parents[1] / "data" / "corpus"
SECONDS, GROWTH = 5, 300 << 20
ODD_NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    31,
    255,
    2**15,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64 - 1,
)
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, -1e308, float("nan"), float("inf"), "", "x", "\0",
    "\x1b]0;x\x07", "\u202e", "../../x", "/etc/passwd", "x" * 5000, "(a+)+$", "\ud800", [], [[]], {},
    {"a": {}}, [None], ["x"], [0, 10**20], {"Regex": "(a+)+$"}, [[[[[[[[]]]]]]]],
)  # fmt: skip


def damage_bytes(data: bytes, dice: random.Random) -> bytes:
    """Change a few places: bits, numbers of four or eight bytes, pieces cut out, doubled or put in."""
    out = bytearray(data)
    # most of what decides stands at the beginning
    near = min(len(out), dice.choice((64, 512, 4096, len(out))))
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = dice.randrange(max(1, near))
        match dice.randrange(7):
            case 0:
                out[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                out[at : at + 8] = struct.pack("<Q", dice.choice(ODD_NUMBERS))
            case 2:
                out[at : at + 4] = struct.pack("<I", dice.choice(ODD_NUMBERS) & 0xFFFFFFFF)
            case 3:
                del out[at : at + dice.choice((1, 4, 8, 100))]
            case 4:
                out[at:at] = out[at : at + dice.choice((1, 8, 64))] * dice.choice((1, 2, 50))
            case 5:
                out[at:at] = dice.choice(
                    (b"\xff" * 8, b"[" * 5000, b'{"a":' * 3000, b"\0", b'"', b"\n")
                )
            case 6:
                del out[at:]
    return bytes(out)


def damage_json(data: bytes, dice: random.Random) -> bytes:
    """Change a few values of a JSON document into ones that nobody expects there."""
    whole = json.loads(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        place: Any = whole
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            if not keys:
                break
            key = dice.choice(keys)
            inner = place[key]
            if isinstance(inner, dict | list) and inner and dice.random() < 0.8:
                place = inner
                continue
            match dice.randrange(4):
                case 0:
                    del place[key]
                case 1 if isinstance(place, list):
                    place.extend(copy.deepcopy(place[:50]))
                case 2 if isinstance(inner, int) and not isinstance(inner, bool):
                    place[key] = dice.choice(
                        (-inner, inner * 2, inner + 1, inner * 10**9, float(inner))
                    )
                case _:
                    place[key] = copy.deepcopy(dice.choice(ODD_VALUES))
            break
    return json.dumps(whole).encode("utf-8", "surrogatepass")


def damage_header(data: bytes, dice: random.Random) -> bytes:
    """The same for the header of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    head = damage_json(data[8 : 8 + size], dice)
    return struct.pack("<Q", len(head)) + head + data[8 + size :]


def damaged(name: str, data: bytes, dice: random.Random) -> bytes:
    """One mutant of the file `name`."""
    if name.endswith(".json") and dice.random() < 0.7:
        return damage_json(data, dice)
    if name.endswith(".safetensors") and dice.random() < 0.6:
        return damage_header(data, dice)
    return damage_bytes(data, dice)


def _read_gguf(path: Path) -> None:
    from rig.model.gguf import fingerprint_file, is_gguf, read_header
    from serve.hardware.machine import Machine
    from serve.hardware.memory import fit_context
    from serve.models.catalogue import format_models, list_models

    format_models(list_models([path]))  # never raises, whatever the file is
    if not is_gguf(path):
        return
    fingerprint_file(path)
    header = read_header(path, lists=True)
    _ = (header.quant_name, header.total_bytes, header.vocab_size, header.reply_format)
    fit_context(header, Machine(4, 4, 4, None, 2**34, 2**34), flash_attn=False)


def _read_imatrix(path: Path) -> None:
    from export.quantise import imatrix

    if not imatrix.is_text(path):
        found = imatrix.read_imatrix(path)
        imatrix.refuse_other_model(found, {"blk.0.attn_q.weight": 256}, path)
        found.mean_squares()


def _export_model(path: Path) -> None:
    from export import plan
    from export.checkpoint.source import find_source

    folder = path.parent
    is_adapter = (folder / "adapter_config.json").exists()
    base = str(CORPUS / "model") if is_adapter else None
    made = plan.plan_export(find_source(str(folder), base=base))
    with tempfile.TemporaryDirectory() as out:
        plan.write_gguf_files(made, {"F16": Path(out) / "m.gguf"}, threads=1)


def _read_weights(path: Path) -> None:
    from export.checkpoint.safetensors import file_weights, read_tensor, refuse_odd_types
    from rig.model import base_weights

    base_weights.WHOLE = 0
    for read in (base_weights.fingerprint_weights, lambda _: file_weights(path)):
        with contextlib.suppress(ClickException):
            read(path.parent)
    found = file_weights(path)
    refuse_odd_types(found, path.parent)
    for tensor in found.values():
        read_tensor(tensor)


def _read_run(path: Path) -> None:
    from rig.runs import Run

    Run.open(path.parent).gguf_files()


def _read_reply_format(path: Path) -> None:
    from rig.model.reply_format import ReplyFormat

    ReplyFormat.from_folder(path.parent).split_reply("<reasoning>x</reasoning>")


KINDS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "gguf": ("model.gguf", _read_gguf),
    "imatrix": ("imatrix.gguf", _read_imatrix),
    "old-imatrix": ("imatrix.dat", _read_imatrix),
    "weights": ("weights/model.safetensors", _read_weights),
    "run": ("run/run.json", _read_run),
    "reply-format": ("run/reply_format.json", _read_reply_format),
    "config": ("model/config.json", _export_model),
    "generation-config": ("model/generation_config.json", _export_model),
    "model-card": ("model/README.md", _export_model),
    "tokenizer": ("model/tokenizer.json", _export_model),
    "tokenizer-config": ("model/tokenizer_config.json", _export_model),
    "index": ("shards/model.safetensors.index.json", _export_model),
    "pieces": ("pieces/tokenizer.model", _export_model),
    "added-tokens": ("pieces/added_tokens.json", _export_model),
    "adapter-config": ("adapter/adapter_config.json", _export_model),
    "adapter": ("adapter/adapter_model.safetensors", _export_model),
}
"""By name: the seed in the corpus, and what reads it; the seed's whole folder is copied beside it."""


def drive(kind: str, count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Read `count` mutants; the trace of what was no sentence, and how much memory grew."""
    name, read = KINDS[kind]
    origin = CORPUS / name
    path = folder / (origin.parent.name if "/" in name else "seed") / origin.name
    path.parent.mkdir(parents=True)
    if "/" in name:
        shutil.copytree(origin.parent, path.parent, dirs_exist_ok=True)
    data = origin.read_bytes()
    path.write_bytes(data)
    with contextlib.suppress(ClickException):
        read(path)  # imports, once
    before, read_whole = _memory(), 0
    for n in range(count):
        dice = random.Random(f"{kind} {seed} {n}")
        path.write_bytes(damaged(name, data, dice))
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            read(path)
            read_whole += 1
        except ClickException as error:
            error.format_message().encode("utf-8", "backslashreplace")
        except BaseException:
            kept = os.environ.get("RIG_FUZZ_KEEP")
            if kept:
                shutil.copyfile(path, Path(kept) / f"{kind}-{seed}-{n}")
            return {
                "kind": kind,
                "seed": seed,
                "number": n,
                "trace": traceback.format_exc()[-3000:],
            }
        finally:
            faulthandler.cancel_dump_traceback_later()
        if _memory() - before > GROWTH:
            return {"kind": kind, "seed": seed, "number": n, "grown": _memory() - before}
    return {"kind": kind, "count": count, "read": read_whole, "grown": _memory() - before}


def _memory() -> int:
    """The most memory this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    kind, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        print(json.dumps(drive(kind, count, seed, Path(folder))))


if __name__ == "__main__":
    main()
