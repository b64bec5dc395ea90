"""Tests that compute with small tensors take one core: `from support.one_thread import one_thread`.

Small tensors gain nothing by two threads, which spin while they wait for each other, and the other core is
somebody else's. The fixture serves every test of the module that imports it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Set torch to one thread for a test, and back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
