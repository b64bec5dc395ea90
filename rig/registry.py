"""Named things: a dictionary with manners, and a path to the user's own function."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rig.errors import RigError, WrongUse, suggest_name

F = TypeVar("F", bound=Callable[..., Any])


class Registry(dict[str, Callable[..., Any]]):
    """Functions by their own name; entry points of the group `rig.<noun>s` join on the first miss.

    >>> greetings = Registry("greeting")
    >>> @greetings.register
    ... def hello(): return "hello"
    >>> greetings.find_function("hello")()
    'hello'
    """

    def __init__(self, noun: str) -> None:
        super().__init__()
        self.noun = noun

    def register(self, function: F) -> F:
        """Keep `function` under its own name; a second one of that name is an error."""
        name = function.__name__
        if name in self:
            raise ValueError(f"there is already a {self.noun} called {name!r}")
        self[name] = function
        return function

    def find_function(self, name: str) -> Callable[..., Any]:
        """Return the function called `name`, or the one at `path.py:function`."""
        if name in self:
            return self[name]
        path, colon, function = name.rpartition(":")
        if colon and path.endswith(".py"):
            return load_function(Path(path), function, self.noun)
        self.load_entry_points()
        if name in self:
            return self[name]
        raise WrongUse(f"There is no {self.noun} called {name!r}; {suggest_name(name, self)}")

    def load_entry_points(self) -> None:
        """Add what other installed packages offer; a name that is there already stays."""
        from importlib.metadata import entry_points

        for point in entry_points(group=f"rig.{self.noun}s"):
            if point.name in self:
                continue
            try:
                self[point.name] = point.load()
            except (ImportError, AttributeError) as error:
                raise RigError(
                    f"The {self.noun} {point.name!r} ({point.value}) can't be imported: {error}. Install "
                    "what offers it again."
                ) from error


def load_function(path: Path, function: str, noun: str) -> Callable[..., Any]:
    """Import the user's own file and return one function of it, or say what is missing."""
    if not path.is_file():
        raise WrongUse(f"There is no file {path}: a {noun} of your own is named path.py:function.")
    name = f"rig_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that its functions can be pickled
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # its helpers lie beside it; at the end, so that they hide nothing
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise WrongUse(f"{path} does not run: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        names = [n for n, thing in vars(module).items() if callable(thing) and n[0] != "_"]
        raise WrongUse(f"{path} has no function {function!r}; {suggest_name(function, names)}")
    return found  # type: ignore[no-any-return]
