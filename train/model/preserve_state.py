"""Whoever looks at a model in training must not change what is looked at."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def preserve_state(model: Any) -> Iterator[None]:
    """Answer inside the block as if nobody had asked: mode and all random states are put back."""
    import numpy
    import torch

    training = model.training
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
            torch.cuda.empty_cache()
