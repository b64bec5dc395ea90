"""Load a model, give it an adapter: the only file that knows how `trl` and `unsloth` differ.

unsloth must be imported before trl, transformers and peft, because it rewrites them; so nothing in this
room imports those at its top, and `import_backend` is the first thing a run calls. No code of unsloth is
here: parts of it are AGPL and LGPL, the user installs it, and this file only calls it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig.errors import RigError, WrongUse
from rig.model import toy

TOY = toy.toy_folder()


@dataclass(frozen=True)
class Backend:
    """Who drives which GPU."""

    name: str
    """`trl` or `unsloth`."""
    cuda: bool
    bf16: bool
    """Whether the GPU computes in bfloat16."""
    device_name: str
    """Its name, or `cpu`."""
    memory: int = 0
    """Its bytes; 0 on a CPU."""

    def to_record(self) -> dict[str, Any]:
        """For run.json: backend, GPU, versions."""
        from importlib.metadata import PackageNotFoundError, version

        versions = {}
        packages = ["torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes"]
        if "unsloth" in sys.modules:
            packages.append("unsloth")
        for package in packages:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                continue
        return {"backend": self.name, "card": self.device_name, "versions": versions}


@dataclass(frozen=True)
class LoraSpec:
    """The adapter that is trained, and the seed that it is drawn from."""

    r: int
    alpha: int
    dropout: float
    targets: tuple[str, ...] | str
    """Module names, or `all-linear`."""
    rslora: bool
    seed: int


def choose_backend(asked: str) -> tuple[str, bool]:
    """Return `trl` or `unsloth`, whichever `asked` (or `auto`) means here, and whether there is CUDA."""
    import torch

    cuda = torch.cuda.is_available()
    here = importlib.util.find_spec("unsloth") is not None
    if asked == "unsloth" and not here:
        raise RigError(
            "backend.name is unsloth, which is not installed: pip install -c constraints.txt -e "
            "'.[unsloth]' in the project's folder, or set backend.name=trl."
        )
    name = "unsloth" if here and cuda and asked in ("auto", "unsloth") else "trl"
    if asked == "unsloth" and name != "unsloth":
        raise RigError(f"unsloth needs a CUDA GPU. {why_no_gpu()} Or set backend.name=trl.")
    return name, cuda


def import_backend(name: str, folder: Path, *, threads: int = 0, quiet: bool = True) -> Backend:
    """Import the backend that `choose_backend` named, before everything that it rewrites.

    `folder` takes what unsloth compiles; `threads` 0 = all cores; `quiet` keeps the libraries' chatter away.
    """
    import torch

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    if name == "unsloth":
        os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
        os.environ.setdefault(
            "UNSLOTH_COMPILE_LOCATION", str(folder.resolve() / "unsloth_compiled_cache")
        )
        import unsloth  # noqa: F401  # before trl, transformers and peft: it rewrites them
    if threads:
        torch.set_num_threads(threads)
    if quiet:
        silence_libraries()
    if not torch.cuda.is_available():
        return Backend(name, cuda=False, bf16=False, device_name="cpu")
    gpu = torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", "0")))
    return Backend(name, True, torch.cuda.is_bf16_supported(), gpu.name, gpu.total_memory)


def model_path(name: str) -> str:
    """What the loaders take: the folder of the toy model, a local folder, or a hub id."""
    if toy.is_toy(name):
        if not (TOY / "config.json").is_file():
            raise RigError(f"The toy model is missing at {TOY}: install rig again.")
        return str(TOY)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise WrongUse(f"{path} is no model folder: it has no config.json.")
        return str(path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise WrongUse(f"There is no model at {name}: give a folder, or a hub id like org/name.")
    return name


def find_weights(name: str, revision: str | None = None) -> Path | None:
    """The folder that holds the weights of `name` on this machine; None where it is not here yet."""
    path = Path(model_path(name))
    if path.is_dir():
        return path
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def load_for_training(
    name: str,
    backend: Backend,
    lora: LoraSpec,
    *,
    precision: str,
    attention: str,
    checkpointing: bool,
    longest: int,
    revision: str | None = None,
    chat_template: Path | None = None,
) -> tuple[Any, Any]:
    """Return (model with a fresh adapter, tokenizer), the adapter drawn from its seed.

    Args:
        name: `toy`, a folder, or a hub id.
        backend: who loads it.
        lora: the adapter.
        precision: `4bit`, `16bit` or `32bit`, of the frozen weights.
        attention: transformers' name; unsloth chooses its own.
        checkpointing: whether activations will be computed twice; unsloth wants to know it now.
        longest: tokens of a prompt and its completion, for unsloth.
        revision: commit or branch of a hub id.
        chat_template: a Jinja file for a model that brings none.
    """
    path = model_path(name)
    with _loading(path):
        if backend.name == "unsloth":
            model, tokenizer = _load_unsloth(
                path, lora, precision, revision, longest=longest, checkpointing=checkpointing
            )
        else:
            model, tokenizer = _load(path, backend, lora, precision, revision, attention)
    finish_tokenizer(tokenizer, name, chat_template)
    return model, tokenizer


def load_for_inference(
    name: str,
    *,
    precision: str = "16bit",
    revision: str | None = None,
    chat_template: Path | None = None,
    adapter: Path | None = None,
) -> tuple[Any, Any]:
    """Return (model, tokenizer) that only answers, with `adapter` on top if given."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    silence_libraries()
    cuda = torch.cuda.is_available()
    path = model_path(name)
    options: dict[str, Any] = {"revision": revision, "dtype": torch.float32}
    if cuda:
        options |= {"dtype": torch.bfloat16, "device_map": {"": 0}}
        if precision == "4bit":
            options["quantization_config"] = _four_bits(torch.bfloat16)
        if precision == "32bit":
            options["dtype"] = torch.float32
    with _loading(path):
        model = AutoModelForCausalLM.from_pretrained(path, **options)
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
        if (adapter / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(str(adapter))
            chat_template = None  # it brings the run's own
    finish_tokenizer(tokenizer, name, chat_template)
    return model.eval(), tokenizer


def finish_tokenizer(tokenizer: Any, name: str, chat_template: Path | None) -> None:
    """Pad on the left; take `chat_template` if given; refuse the model `name` without any."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if chat_template is not None:
        try:
            tokenizer.chat_template = chat_template.read_text("utf-8")
        except FileNotFoundError:
            raise WrongUse(f"There is no chat template {chat_template}.") from None
    if not tokenizer.chat_template:
        raise WrongUse(
            f"{name} has no chat template (it is a base model): take its Instruct version, "
            "or set model.chat_template to a Jinja file."
        )


def _load(
    path: str,
    backend: Backend,
    lora: LoraSpec,
    precision: str,
    revision: str | None,
    attention: str,
) -> tuple[Any, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    half = torch.bfloat16 if backend.bf16 else torch.float16
    options: dict[str, Any] = {
        "revision": revision,
        "attn_implementation": attention,
        "dtype": torch.float32 if precision == "32bit" else half,
    }
    if backend.cuda:
        options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    if precision == "4bit":
        options["quantization_config"] = _four_bits(half)
    model = AutoModelForCausalLM.from_pretrained(path, **options)
    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    set_seed(lora.seed)
    targets: Any = lora.targets if lora.targets == "all-linear" else list(lora.targets)
    try:
        model = get_peft_model(
            model,
            LoraConfig(
                r=lora.r,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=targets,
                use_rslora=lora.rslora,
                bias="none",
                task_type="CAUSAL_LM",
            ),
        )
    except ValueError as error:
        raise WrongUse(f"lora.targets: {str(error).splitlines()[0]}") from error
    return model, tokenizer


def _load_unsloth(
    path: str,
    lora: LoraSpec,
    precision: str,
    revision: str | None,
    *,
    longest: int,
    checkpointing: bool,
) -> tuple[Any, Any]:
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=path,
        revision=revision,
        max_seq_length=longest,
        load_in_4bit=precision == "4bit",
        load_in_16bit=precision == "16bit",
        full_finetuning=False,
        fast_inference=False,
        max_lora_rank=lora.r,
        random_state=lora.seed,
        **(
            {"device_map": {"": int(os.environ["LOCAL_RANK"])}}
            if "LOCAL_RANK" in os.environ
            else {}
        ),
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        use_rslora=lora.rslora,
        bias="none",
        use_gradient_checkpointing="unsloth" if checkpointing else False,
        random_state=lora.seed,
    )
    return model, tokenizer


def _four_bits(dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


class _loading:
    """What goes wrong while a model loads, as one sentence."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, RigError | WrongUse | KeyboardInterrupt):
            return
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            raise RigError(
                f"{self.name} does not fit the GPU: set model.precision=4bit, or take a smaller "
                "model (rig train RECIPE --plan says what is needed)."
            ) from error
        from safetensors import SafetensorError

        if isinstance(error, SafetensorError):
            raise RigError(
                f"The weights in {self.name} are damaged ({error}): download them again."
            ) from error
        if isinstance(error, OSError | ValueError | ImportError):
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RigError(f"{self.name} could not be loaded: {reason[:300]}") from error


def why_no_gpu() -> str:
    """Why torch sees no GPU: none there, hidden, no driver, or a torch that was built without CUDA."""
    import torch

    if torch.version.cuda is None:
        if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
            return (
                "There is a GPU, but this torch was built without CUDA: install torch from "
                "PyTorch's own index (https://pytorch.org/get-started/locally)."
            )
        return "This torch was built without CUDA."
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every GPU: unset it."
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        return f"torch sees no GPU ({reason}): install or update the NVIDIA driver."
    return "torch sees no GPU: install or update the NVIDIA driver."


def silence_libraries() -> None:
    """Keep the libraries' chatter off the terminal; what matters, rig says itself."""
    import logging
    import warnings

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("accelerate", "bitsandbytes", "datasets", "peft", "trl", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|trl|peft|torch|accelerate)\b.*")
