"""What there is to export, found on disk: a run, a model or adapter folder, a hub id, or `toy`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from export.checkpoint.architecture import CheckpointModel
from export.checkpoint.config import ADAPTER as ADAPTER_CONFIG
from export.checkpoint.config import read_adapter_config, read_model_config
from rig import runs
from rig.errors import RigError, WrongUse
from rig.model import toy
from rig.model.base_weights import check_base_weights
from rig.model.reply_format import ReplyFormat
from rig.paths import shell_word
from rig.runs import Run

HUB_ID = re.compile(r"(?!.*(?:--|\.\.))\w[\w.-]{0,95}/\w[\w.-]{0,95}(?<![.-])", re.ASCII)
HUB_FILES = [
    "*.safetensors", "model.safetensors.index.json", "*config.json", "tokenizer*", "*.jinja",
    "special_tokens_map.json", "added_tokens.json", "chat_template.json", "vocab.json", "merges.txt",
    "README.md",
]  # fmt: skip


class NoSuchModel(WrongUse):
    """A name leads to no model."""


@dataclass(frozen=True)
class ExportSource:
    """A base model and what was taught to it."""

    name: str
    """Names the files that are made: the run's name, or the model's own."""
    base: str
    """The base as the user or the run named it."""
    folder: Path
    """The base's files."""
    adapter: Path | None
    reply_format: ReplyFormat
    run: Run | None = None

    @property
    def portable_base(self) -> str:
        """The base as a file may name it that travels: a hub id, `toy`, or a folder's bare name."""
        return self.base if self.hub_id or self.base == "toy" else self.folder.resolve().name

    @property
    def hub_id(self) -> str | None:
        """The base's id on the hub, when it was named by one."""
        named = not Path(self.base).exists() and HUB_ID.fullmatch(self.base)
        return self.base if named else None


def find_source(
    model: str, *, base: str | None = None, adapter: Path | None = None
) -> ExportSource:
    """Find `model`; `base` replaces the base that a run or an adapter names, `adapter` adds one."""
    path = runs.find_run(model)
    if not toy.is_toy(model) and (path / runs.RECORD).is_file():
        run = Run.open(path)
        if adapter is not None:
            raise WrongUse(f"{model} is a run and has its own adapter: leave --adapter-dir out.")
        if not (run.adapter_folder / ADAPTER_CONFIG).is_file():
            raise RigError(
                f"{path} has no finished adapter yet (it is {run.state}): let the training end "
                f"(rig train --resume {shell_word(path)})."
            )
        with _naming_base(run.adapter_folder, base):
            found = _put(path.resolve().name, base or run.base_model, run.adapter_folder, run)
        if base is None:  # one that is named is the person's own choice
            check_base_weights(run, found.folder)
        return found
    if (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file():
        named = base or str(read_adapter_config(path).get("base_model_name_or_path") or "")
        if not named:
            raise WrongUse(f"{path} is an adapter that names no base: give it with --base.")
        with _naming_base(path, base):
            return _put(path.resolve().name, named, path)
    if base is not None:
        raise WrongUse("--base goes with a run or an adapter folder; MODEL is a model itself.")
    folder = find_model_folder(model)
    name = model.rsplit("/", 1)[-1] if not Path(model).exists() else folder.resolve().name
    return _put(name, model, adapter)


def find_model_folder(model: str) -> Path:
    """The files of a model: `toy`, a folder, or a hub id (downloaded when it is not here yet)."""
    if toy.is_toy(model):
        return toy.toy_folder()
    path = Path(model).expanduser()
    if (path / "config.json").is_file():
        return path
    if path.exists():
        raise NoSuchModel(
            f"{path} is no model to export: a run has run.json, a model folder config.json, an adapter "
            f"{ADAPTER_CONFIG}."
        )
    if HUB_ID.fullmatch(model):
        return _download(model)
    raise NoSuchModel(
        f"There is no {model}: give a run, a model folder, an adapter folder, a hub id such as "
        f"org/name, or `toy`."
    )


def local_model_folder(model: str) -> Path | None:
    """The files of a model that are on this machine already; None where it would have to be fetched."""
    path = Path(model).expanduser()
    if (path / "config.json").is_file():
        return path
    if not HUB_ID.fullmatch(model):
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ModuleNotFoundError:
        return None
    found = try_to_load_from_cache(model, "config.json")
    return Path(found).parent if isinstance(found, str) else None


@contextlib.contextmanager
def _naming_base(adapter: Path, given: str | None) -> Iterator[None]:
    """Say what an adapter's own word for its base was, where that leads nowhere."""
    try:
        yield
    except NoSuchModel as error:
        if given is not None:
            raise
        named = read_adapter_config(adapter).get("base_model_name_or_path")
        raise WrongUse(
            f"The adapter in {adapter} names {named} as its base, which is not here: give that base, the "
            f"16-bit one, with --base FOLDER or a hub id such as org/name."
        ) from error


def _put(name: str, base: str, adapter: Path | None, run: Run | None = None) -> ExportSource:
    folder = find_model_folder(base)
    if adapter is not None:
        _refuse_quantised_base(adapter, base, folder)
        _refuse_other_family(adapter, folder)
    reply_format = ReplyFormat.from_folder(adapter) if adapter else ReplyFormat()
    return ExportSource(
        name,
        base,
        folder,
        adapter,
        reply_format if reply_format != ReplyFormat() else ReplyFormat.from_folder(folder),
        run,
    )


def _refuse_quantised_base(adapter: Path, base: str, folder: Path) -> None:
    """Stop at a base whose weights are quantised: the adapter belongs on the ones they were made of."""
    settings = read_model_config(folder).get("quantization_config")
    if isinstance(settings, dict) and settings.get("quant_method"):
        raise RigError(
            f"The adapter in {adapter} names {base} as its base, whose weights are quantised "
            f"({settings['quant_method']}): give the 16-bit model that it was made of with --base."
        )


def _refuse_other_family(adapter: Path, folder: Path) -> None:
    """Stop where the base that the adapter names lies here and is of another architecture than `folder`.

    Shapes are compared later, but two architectures may share them all, and the sum would babble.
    """
    named = str(read_adapter_config(adapter).get("base_model_name_or_path") or "")
    if (theirs := local_model_folder(named) if named else None) is None:
        return
    one, other = (_family(place) for place in (theirs, folder))
    if one != other:
        raise RigError(
            f"The adapter in {adapter} was trained on {named}, a {one}, and {folder} is a {other}: it "
            f"belongs to another model."
        )


def _family(folder: Path) -> str:
    name = str((read_model_config(folder).get("architectures") or ["?"])[0])
    return name.split("For")[0]


def _download(model: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError:
        raise RigError(
            f"{model} is on the hub: pip install huggingface_hub, or give a folder."
        ) from None
    try:
        folder = Path(snapshot_download(model, allow_patterns=["config.json"]))
        if not (folder / "config.json").is_file():
            raise RigError(
                f"{model} on the hub has no config.json: it is no whole model; of an adapter, give the "
                f"downloaded folder."
            )
        CheckpointModel(
            read_model_config(folder), model
        )  # refused before gigabytes come for nothing
        return Path(snapshot_download(model, allow_patterns=HUB_FILES))
    except LocalEntryNotFoundError:
        raise RigError(
            f"{model} is neither a folder nor in the hub's cache here, and the hub cannot be reached."
        ) from None
    except HfHubHTTPError as error:
        raise RigError(f"The hub refused {model}: {str(error).splitlines()[0]}") from error
