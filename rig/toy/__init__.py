"""The toy model: a toy of 3.7 million parameters, so that the whole loop runs without a download."""

from __future__ import annotations

from pathlib import Path


def toy_folder() -> Path:
    """The folder of the model, as `transformers` and `rig export` read it.

    >>> (toy_folder() / "config.json").exists()
    True
    """
    return Path(__file__).resolve().parent
