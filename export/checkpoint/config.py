"""What a model's JSON files may say, typed and bounded: what is wrong with a folder is a sentence.

Only what rig reads is held to a type; the rest of a file is kept as it stands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rig.errors import RigError
from rig.model.foreign import read_json_object

Json = dict[str, Any]
T = TypeVar("T", bound=BaseModel)
ADAPTER = "adapter_config.json"


Size = Annotated[int, Field(ge=1, le=2**26)]
Heads = Annotated[int, Field(ge=1, le=2**16)]
Token = Annotated[int, Field(ge=-1, lt=2**31)]
Pattern = Annotated[str, Field(max_length=1000)]
Real = Annotated[float, Field(ge=-3e38, le=3e38)]
Positive = Annotated[float, Field(gt=0, le=3e38)]


class _Foreign(BaseModel):
    """Keys without a field are kept."""

    model_config = ConfigDict(extra="allow")


class RopeConfig(_Foreign):
    """`rope_scaling`, `rope_parameters`, or what the latter has for one kind of layer."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Size | None = None
    extrapolation_factor: Real | None = None
    attention_factor: Real | None = None
    attn_factor: Real | None = None
    beta_fast: Real | None = None
    beta_slow: Real | None = None
    full_attention: RopeConfig | None = None
    sliding_attention: RopeConfig | None = None


class _Quantised(_Foreign):
    quant_method: str | None = None
    load_in_4bit: bool | None = None


class _Sizes(_Foreign):
    num_hidden_layers: Annotated[int, Field(ge=1, le=4096)] | None = None
    num_attention_heads: Heads | None = None
    num_key_value_heads: Heads | None = None
    hidden_size: Size | None = None
    intermediate_size: Size | None = None
    vocab_size: Size | None = None
    head_dim: Heads | None = None
    max_position_embeddings: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    original_max_position_embeddings: Size | None = None
    rms_norm_eps: Annotated[float, Field(ge=0, lt=1)] | None = None
    rope_theta: Positive | None = None
    rope_local_base_freq: Positive | None = None
    rope_scaling: RopeConfig | None = None
    rope_parameters: RopeConfig | None = None
    tie_word_embeddings: bool | None = None
    sliding_window: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    sliding_window_pattern: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    final_logit_softcapping: Positive | None = None
    bos_token_id: Token | list[Token] | None = None
    eos_token_id: Token | list[Token] | None = None
    pad_token_id: Token | list[Token] | None = None
    num_labels: Size | None = None


class ModelConfig(_Sizes):
    """`config.json` of a model."""

    architectures: list[str] | None = None
    quantization_config: _Quantised | None = None
    text_config: _Sizes | None = None


class GenerationConfig(_Foreign):
    """`generation_config.json`."""

    eos_token_id: Token | list[Token] | None = None
    top_k: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    top_p: Real | None = None
    min_p: Real | None = None
    temperature: Real | None = None
    repetition_penalty: Real | None = None


class AdapterConfig(_Foreign):
    """`adapter_config.json` of PEFT."""

    peft_type: str | None = None
    base_model_name_or_path: Annotated[str, Field(max_length=4096)] | None = None
    r: Heads = 8
    lora_alpha: Real = 8
    rank_pattern: Annotated[dict[Pattern, Heads], Field(max_length=2048)] | None = None
    alpha_pattern: Annotated[dict[Pattern, Real], Field(max_length=2048)] | None = None
    use_rslora: bool | None = None
    init_lora_weights: bool | str | None = None
    modules_to_save: list[str] | str | None = None


class _Named(_Foreign):
    content: str


class _Template(_Foreign):
    name: str
    template: str


class TokenizerConfig(_Foreign):
    """`tokenizer_config.json`."""

    chat_template: str | list[_Template] | None = None
    add_prefix_space: bool | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    added_tokens_decoder: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], _Named] | None = None
    bos_token: str | _Named | None = None
    eos_token: str | _Named | None = None
    unk_token: str | _Named | None = None
    sep_token: str | _Named | None = None
    pad_token: str | _Named | None = None
    cls_token: str | _Named | None = None
    mask_token: str | _Named | None = None


def read_json(path: Path) -> Json:
    """A JSON object, `{}` where there is no file."""
    return read_json_object(path) if path.exists() or path.is_symlink() else {}


def read_model_config(folder: Path) -> Json:
    """`config.json` of a model."""
    return _typed(folder / "config.json", ModelConfig)


def read_generation_config(folder: Path) -> Json:
    """`generation_config.json` of a model."""
    return _typed(folder / "generation_config.json", GenerationConfig)


def read_adapter_config(folder: Path) -> Json:
    """`adapter_config.json` of an adapter."""
    return _typed(folder / ADAPTER, AdapterConfig)


def read_tokenizer_config(folder: Path) -> Json:
    """`tokenizer_config.json` of a tokenizer."""
    return _typed(folder / "tokenizer_config.json", TokenizerConfig)


def check_typed(values: Json, kind: type[BaseModel], where: Path | str) -> Json:
    """`values` as `kind` reads them: 2.0 of a whole number is 2."""
    return values | refuse_untyped(values, kind, where).model_dump(exclude_unset=True)


def refuse_untyped(values: Json, kind: type[T], where: Path | str) -> T:
    """`values` as a `kind`, or a sentence about the first that is none."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RigError(
            f"{where} is damaged ({key} is {str(first['input'])[:60]!r}: {first['msg']}): copy or "
            f"download it again."
        ) from None


def _typed(path: Path, kind: type[BaseModel]) -> Json:
    return check_typed(read_json(path), kind, path)
