"""The numbers of an exported file: how far its distributions are from 16 bit and from what was trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from export.checkpoint.safetensors import TensorReader
from export.llama import LlamaModel
from export.plan import ExportPlan
from export.quantise import ggml
from export.quantise.ggml import Floats
from export.quantise.quant_types import NEED_IMPORTANCE
from export.verify import torch_reference
from export.verify.report import CheckReport
from rig.model.gguf import read_header

LENGTH = 128
"""Tokens of one text."""
SAME = 0.02
"""Mean KL (nats) up to which a 16-bit file counts as the trained model; rounding gives 1e-4 and less."""


def kl_divergence(one: Floats, other: Floats) -> tuple[float, float]:
    """Mean KL(one ‖ other) in nats, and the share of rows whose likeliest token is the same.

    >>> kl_divergence(np.zeros((2, 4), np.float32), np.ones((2, 4), np.float32))
    (0.0, 1.0)
    """
    total, same = 0.0, 0
    # a row at a time, (vocabulary,) each: float64 copies of a whole text would be large
    for left, right in zip(one, other, strict=True):
        p, q = _log_softmax(left), _log_softmax(right)
        total += float(np.sum(np.exp(p) * (p - q)))
        same += int(np.argmax(left) == np.argmax(right))
    return max(0.0, total / len(one)), same / len(one)


def sample_sequences(loaded: LlamaModel, texts: Sequence[str]) -> list[list[int]]:
    """Token sequences to compare distributions on; fewer where the vocabulary makes each one big."""
    found: list[list[int]] = []
    left = 512 if loaded.size < 65_536 else 256
    for text in texts:
        ids = loaded.tokenize_text(text)
        if loaded.adds_bos() and ids[:1] != [loaded.special_token_id("bos")]:
            ids = [loaded.special_token_id("bos"), *ids]
        ids = ids[: min(LENGTH, left)]
        if len(ids) > 1:
            found.append(ids)
            left -= len(ids)
        if left <= 1:
            break
    return found


def compare_logits(
    plan: ExportPlan,
    files: Sequence[Path],
    reference: Path | None,
    texts: Sequence[Sequence[int]],
    report: CheckReport,
    threads: int,
) -> None:
    """Hold every file against 16 bit, and against the trained model where PyTorch is there."""
    truth = _trained(plan, texts, report, threads)
    sixteen: list[Floats] | None = None
    if reference is None:
        report.notes.append(
            "Not compared with 16 bit: there is no room on the disk for such a file."
        )
    else:
        report.tell("distributions in 16 bits")
        sixteen = _logits(reference, texts, threads)
        if truth is not None:
            kl, _ = _mean(truth, sixteen)
            report.adapter["sixteen_bit_kl"] = kl
            if kl > SAME:
                report.problems.append(
                    f"Even in 16 bit the file is not the model that was trained: mean KL {kl:.3f} where "
                    f"rounding gives less than {SAME}."
                )
    _four_bits(plan, truth if truth is not None else sixteen, texts, report, threads)
    for path in files:
        report.tell(f"distributions of {path.name}")
        said = sixteen if sixteen and path == reference else _logits(path, texts, threads)
        entry = report.file_figures(path.name)
        entry["positions"] = sum(map(len, texts))
        if not all(np.isfinite(rows).all() for rows in said):
            report.problems.append(f"{path.name} computes numbers that are not finite.")
            continue
        if sixteen is not None:
            entry["kl"], entry["top1"] = _mean(sixteen, said)
        if truth is not None:
            entry["trained_kl"], entry["trained_top1"] = _mean(truth, said)


def adapter_effect(plan: ExportPlan, files: Sequence[Path], report: CheckReport) -> None:
    """Whether the adapter changes anything, and still does after quantising (some rows of each tensor)."""
    changed = [part for part in plan.parts if part.source in plan.changes]
    if plan.source.adapter is None:
        return
    kinds = {path: {t.name: t.type for t in read_header(path).tensors} for path in files}
    different, bytes_ = dict.fromkeys(files, 0), dict.fromkeys(files, 0)
    sizes = []
    work, bare = plan.conversion_pass, plan.conversion_pass.without_changes()
    report.tell("what is left of the adapter")
    with TensorReader() as reader:
        for part in changed:
            rows = part.shape[0] // part.heads if part.heads else min(part.shape[0], 32)
            # one head, or 32 rows: (rows, columns)
            blank = np.empty((rows, part.shape[1] if len(part.shape) > 1 else 1), np.float32)
            before = bare.fill_rows(part, 0, blank, reader).copy()
            after = work.fill_rows(part, 0, blank, reader)
            sizes.append(float(np.linalg.norm(after - before) / (np.linalg.norm(before) or 1)))
            for path in files:
                kind = GGMLQuantizationType[kinds[path][part.name]]
                one, other = _packed(kind, before), _packed(kind, after)
                different[path] += int(np.sum(one != other))
                bytes_[path] += one.size
    report.adapter |= {
        "tensors": len(changed),
        "untouched": sum(size == 0 for size in sizes),
        "relative_change": float(np.mean(sizes)),
    }
    if not any(sizes):
        report.problems.append(
            "The adapter has no effect: every change it makes is zero. Was it trained before it was saved?"
        )
        return
    for path in files:
        report.file_figures(path.name)["changed_bytes"] = different[path] / bytes_[path]
        if not different[path]:
            report.problems.append(
                f"The adapter has no effect in {path.name}: its type rounds every change away; take a "
                f"finer one."
            )


def _packed(kind: GGMLQuantizationType, rows: Floats) -> np.ndarray[Any, np.dtype[np.uint8]]:
    room = np.empty(rows.nbytes, np.uint8)
    even = np.ones(rows.shape[1], np.float32) if kind in NEED_IMPORTANCE else None
    return room[: ggml.quantise_rows(kind, np.ascontiguousarray(rows), room, even)]


def _logits(path: Path, texts: Sequence[Sequence[int]], threads: int) -> list[Floats]:
    with LlamaModel(path, context=LENGTH, threads=threads) as loaded:
        return [loaded.compute_logits(text) for text in texts]


def _trained(
    plan: ExportPlan, texts: Sequence[Sequence[int]], report: CheckReport, threads: int
) -> list[Floats] | None:
    """The trained model's logits from PyTorch; None (and a note) where it cannot run."""
    report.tell("the trained model in PyTorch")
    source, size = plan.source, plan.model.vocabulary
    truth: list[Floats] = []
    moved: list[float] = []
    try:
        for taught, bare in torch_reference.torch_logits(
            source.folder,
            source.adapter,
            texts,
            weights=plan.conversion_pass.parameter_count,
            threads=threads,
        ):
            truth.append(taught[:, :size].copy())  # (tokens, vocabulary), less the padded ends
            if bare is not None:
                moved.append(kl_divergence(truth[-1], bare[:, :size])[0])
    except torch_reference.FAILS as error:
        report.notes.append(f"Not compared with the trained model in PyTorch: {_line(error)}.")
        return None
    if moved:
        report.adapter["moves_kl"] = float(np.mean(moved))
        if report.adapter["moves_kl"] < 1e-9:
            report.problems.append("The adapter has no effect: the model says the same without it.")
    return truth


def _four_bits(
    plan: ExportPlan,
    merged: Sequence[Floats] | None,
    texts: Sequence[Sequence[int]],
    report: CheckReport,
    threads: int,
) -> None:
    """How far base and adapter in 16 bits (`merged`) are from the model as trained, on a 4-bit base."""
    folder = torch_reference.four_bit_base(plan.source)
    if folder is None or merged is None:
        return
    report.tell("the model as it was trained, on a 4-bit base")
    size = plan.model.vocabulary
    found = torch_reference.torch_logits(
        folder,
        plan.source.adapter,
        texts,
        weights=plan.conversion_pass.parameter_count,
        threads=threads,
        four_bits=True,
    )
    try:
        taught = [rows[:, :size].copy() for rows, _ in found]
    except torch_reference.FAILS as error:
        report.notes.append(
            f"The adapter was trained on a 4-bit base; how far the 16-bit one takes it from there was "
            f"not measured: {_line(error)}."
        )
        return
    kl, top1 = _mean(taught, merged)
    report.adapter |= {"four_bit_kl": kl, "four_bit_top1": top1}
    if kl > report.adapter.get("moves_kl", math.inf):
        report.notes.append(
            "The step from the 4-bit base to the 16-bit one changes more than the adapter does: judge the "
            "exported file (rig eval) before you trust it."
        )


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _mean(one: Sequence[Floats], other: Sequence[Floats]) -> tuple[float, float]:
    found = [(*kl_divergence(a, b), len(a)) for a, b in zip(one, other, strict=True)]
    count = sum(size for _, _, size in found)
    kl = sum(kl * size for kl, _, size in found) / count
    return kl, sum(top * size for _, top, size in found) / count


def _log_softmax(row: Floats) -> np.ndarray[Any, np.dtype[np.float64]]:
    wide = row.astype(np.float64)
    wide -= wide.max()
    return wide - math.log(float(np.exp(wide).sum()))
