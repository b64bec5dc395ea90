"""What a model is made of, counted from its config.json alone: no weights, no torch for the usual families.

A family that is not known here is built on torch's meta device, which takes no memory and counts just as
exactly. `shapes.json` holds the numbers of the models that recipes name, so that a plan needs no network.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig.errors import RigError, WrongUse, suggest_name

SHIPPED = Path(__file__).parent / "shapes.json"
KNOWN = ("llama", "mistral", "qwen2", "qwen3")
"""Families counted by arithmetic."""
MIRRORS = ("unsloth",)
"""Owners whose copies have the shape of the original of that name."""


@dataclass(frozen=True)
class LinearShape:
    """One kind of linear module, `count` of them in the model."""

    name: str
    inputs: int
    outputs: int
    count: int

    @property
    def parameter_count(self) -> int:
        """Weights in all of them, without biases."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True)
class ModelShape:
    """The numbers of one model that memory and trainable parameters follow from."""

    hidden: int
    layers: int
    intermediate: int
    vocabulary: int
    kv_width: int
    """Elements that one token leaves in the cache of one layer, keys and values together."""
    tied: bool
    linears: tuple[LinearShape, ...]
    small: int
    """Parameters of norms and biases."""

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding, and of the output head where it is not the same tensor."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def linear_parameters(self) -> int:
        """Parameters of all linear modules of the layers."""
        return sum(linear.parameter_count for linear in self.linears)

    @property
    def parameter_count(self) -> int:
        """All parameters of the model."""
        return self.embedding_parameters + self.linear_parameters + self.small

    def lora_parameters(self, r: int, targets: tuple[str, ...] | str) -> dict[str, int]:
        """Trainable parameters per module: r x (in + out) for each matrix; every target must exist.

        >>> shape = shape_from_config({**json.loads(SHIPPED.read_text())["meta-llama/Llama-3.1-8B-Instruct"]})
        >>> sum(shape.lora_parameters(32, "all-linear").values())
        83886080
        """
        names = [linear.name for linear in self.linears]
        wanted = names if targets == "all-linear" else list(targets)
        for target in wanted:
            if target not in names:
                raise WrongUse(
                    f"lora.targets: the model has no {target!r}; {suggest_name(target, names)}"
                )
        return {
            linear.name: r * (linear.inputs + linear.outputs) * linear.count
            for linear in self.linears
            if linear.name in wanted
        }


def load_shape(name: str, revision: str | None = None) -> ModelShape:
    """The shape of `toy`, of a local folder, of a shipped shape, or of a hub id (its config only)."""
    from train.model.backends import model_path

    path = model_path(name)
    if Path(path).is_dir():
        return shape_from_config(_read(Path(path) / "config.json"), Path(path))
    if (known := shipped_config(path)) is not None:
        return shape_from_config(known)
    return shape_from_config(_from_hub(path, revision))


def shipped_config(name: str) -> dict[str, Any] | None:
    """The config of a model that `shapes.json` knows, also under the name of a mirror's copy."""
    shapes: dict[str, dict[str, Any]] = json.loads(SHIPPED.read_text("utf-8"))
    for known, config in shapes.items():
        owner, _, short = name.lower().partition("/")
        copied = short.removesuffix("-bnb-4bit").removesuffix("-unsloth").removeprefix("meta-")
        if name.lower() == known.lower():
            return config
        if owner in MIRRORS and copied == known.lower().partition("/")[2]:
            return config
    return None


def shape_from_config(config: dict[str, Any], folder: Path | None = None) -> ModelShape:
    """Count by arithmetic where the family is known, else by building the model without memory."""
    config = config.get("text_config") or config
    if config.get("model_type") not in KNOWN:
        return _of_meta(config, folder)
    try:
        return _of_family(config)
    except KeyError as error:
        raise RigError(
            f"The model's config.json lacks {error}: download the model again."
        ) from None


def _of_family(config: dict[str, Any]) -> ModelShape:
    family = config["model_type"]
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    width = config.get("head_dim") or hidden // heads
    inner = config["intermediate_size"]
    query, keys = heads * width, kv_heads * width
    linears = (
        LinearShape("q_proj", hidden, query, layers),
        LinearShape("k_proj", hidden, keys, layers),
        LinearShape("v_proj", hidden, keys, layers),
        LinearShape("o_proj", query, hidden, layers),
        LinearShape("gate_proj", hidden, inner, layers),
        LinearShape("up_proj", hidden, inner, layers),
        LinearShape("down_proj", inner, hidden, layers),
    )
    small = hidden * (2 * layers + 1)
    if family == "qwen2":
        small += layers * (query + 2 * keys)  # biases of q, k, v
    elif config.get("attention_bias"):
        small += layers * (query + 2 * keys + hidden)
    if config.get("mlp_bias"):
        small += layers * (2 * inner + hidden)
    if family == "qwen3":
        small += layers * 2 * width  # norms of queries and keys
    return ModelShape(
        hidden=hidden,
        layers=layers,
        intermediate=inner,
        vocabulary=config["vocab_size"],
        kv_width=2 * keys,
        tied=bool(config.get("tie_word_embeddings", False)),
        linears=linears,
        small=small,
    )


def _of_meta(config: dict[str, Any], folder: Path | None) -> ModelShape:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family = str(config.get("model_type"))
    try:
        full = (
            AutoConfig.from_pretrained(str(folder))
            if folder is not None
            else AutoConfig.for_model(family, **config)
        )
        full = full.get_text_config()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(full)
    except Exception as error:
        raise RigError(
            f"The model family {family!r} can't be counted: {str(error).splitlines()[0]}"
        ) from error
    kinds: dict[tuple[str, int, int], int] = {}
    inside = 0
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            kind = (path.rpartition(".")[2], module.in_features, module.out_features)
            kinds[kind] = kinds.get(kind, 0) + 1
            inside += module.weight.numel()
    embedding = model.get_input_embeddings().weight.numel()
    tied = bool(full.tie_word_embeddings)
    total = sum(parameter.numel() for parameter in model.parameters())
    heads = full.num_attention_heads
    kv_heads = getattr(full, "num_key_value_heads", None) or heads
    width = getattr(full, "head_dim", None) or full.hidden_size // heads
    return ModelShape(
        hidden=full.hidden_size,
        layers=full.num_hidden_layers,
        intermediate=getattr(full, "intermediate_size", None) or 4 * full.hidden_size,
        vocabulary=full.vocab_size,
        kv_width=2 * kv_heads * width,
        tied=tied,
        linears=tuple(LinearShape(*kind, count) for kind, count in kinds.items()),
        small=total - inside - embedding * (1 if tied else 2),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise RigError(f"{path} is damaged ({error}): download the model again.") from error
    return dict(found)


def _from_hub(name: str, revision: str | None) -> dict[str, Any]:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "10")
    try:
        return _read(Path(huggingface_hub.hf_hub_download(name, "config.json", revision=revision)))
    except GatedRepoError as error:
        raise RigError(
            f"{name} is gated: accept its licence on huggingface.co, then run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise WrongUse(f"There is no model {name} on the hub: check model.name.") from error
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise RigError(
            f"The hub can't be asked for {name}: connect to the network, or give model.name as a "
            "local folder with its config.json."
        ) from error
