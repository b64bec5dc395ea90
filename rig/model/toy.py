"""The model that comes with rig: a toy of 3.7 million parameters; the loop runs without a download."""

from __future__ import annotations

from pathlib import Path

from rig.errors import WrongUse

NAME = "toy"


def is_toy(model: str) -> bool:
    """Whether `model` names the toy; its name of before is refused with the new one.

    >>> is_toy("toy"), is_toy("org/model")
    (True, False)
    """
    if model == "embedded":
        raise WrongUse(
            "The model `embedded` is called `toy` now: write that, in a recipe's [model] and in a run's "
            'run.json ("base": "toy") too.'
        )
    return model == NAME


def toy_folder() -> Path:
    """The folder of the model, as `transformers` and `rig export` read it.

    >>> (toy_folder() / "config.json").exists()
    True
    """
    return Path(__file__).resolve().parents[1] / "toy"
