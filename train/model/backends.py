"""Load a model, give it an adapter: the only file that knows how `trl` and `unsloth` differ.

unsloth must be imported before trl, transformers and peft, because it rewrites them; so nothing in this
room imports those at its top, and `prepare_backend` is the first thing a run calls. No code of unsloth is
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
from train.recipe import ModelTable, Recipe

TOY = toy.toy_folder()


@dataclass(frozen=True)
class Backend:
    """Who drives which card."""

    name: str
    """`trl` or `unsloth`."""
    cuda: bool
    bf16: bool
    """Whether the card computes in bfloat16."""
    device_name: str
    """Its name, or `cpu`."""
    memory: int = 0
    """Its bytes; 0 on a CPU."""

    def to_record(self) -> dict[str, Any]:
        """For run.json: backend, card, versions."""
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


def prepare_backend(recipe: Recipe, folder: Path, *, quiet: bool = True) -> Backend:
    """Choose the backend, say at once what it can't do, and import it in the right order.

    `folder` takes what unsloth compiles; `quiet` keeps the libraries' chatter away.
    """
    import torch

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    cuda = torch.cuda.is_available()
    asked = recipe.backend.name
    here = importlib.util.find_spec("unsloth") is not None
    if asked == "unsloth" and not here:
        raise RigError(
            "backend.name is unsloth, which is not installed: pip install -c constraints.txt -e "
            "'.[unsloth]' in the project's folder, or set backend.name=trl."
        )
    name = "unsloth" if here and cuda and asked in ("auto", "unsloth") else "trl"
    if asked == "unsloth" and name != "unsloth":
        raise RigError(f"unsloth needs a CUDA card. {why_no_gpu()} Or set backend.name=trl.")
    if problems := unsupported_settings(recipe, name, cuda=cuda):
        raise WrongUse(problems[0])
    if name == "unsloth":
        os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
        os.environ.setdefault(
            "UNSLOTH_COMPILE_LOCATION", str(folder.resolve() / "unsloth_compiled_cache")
        )
        import unsloth  # noqa: F401  # before trl, transformers and peft: it rewrites them
    if recipe.backend.threads:
        torch.set_num_threads(recipe.backend.threads)
    if quiet:
        silence_libraries()
    if not cuda:
        return Backend(name, cuda=False, bf16=False, device_name="cpu")
    card = torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", "0")))
    return Backend(name, True, torch.cuda.is_bf16_supported(), card.name, card.total_memory)


def unsupported_settings(recipe: Recipe, backend: str, *, cuda: bool) -> list[str]:
    """What this recipe asks for and this backend can't do here, one sentence each."""
    model, schedule = recipe.model, recipe.schedule
    found = []
    if not cuda:
        if model.precision == "4bit":
            found.append(
                f"model.precision = 4bit needs a CUDA card. {why_no_gpu()} "
                "On the CPU train a small model with --set model.precision=32bit."
            )
        if model.precision == "16bit":
            found.append(
                f"model.precision = 16bit needs a CUDA card (a CPU learns in 32 bits). "
                f"{why_no_gpu()} Or: --set model.precision=32bit."
            )
        if "8bit" in schedule.optim or "paged" in schedule.optim:
            found.append(
                f"schedule.optim = {schedule.optim} needs a CUDA card: --set "
                "schedule.optim=adamw_torch."
            )
        if recipe.backend.compile:
            found.append("backend.compile needs a CUDA card: --set backend.compile=false.")
        if model.attention == "flash_attention_2":
            found.append("model.attention = flash_attention_2 needs a CUDA card: use sdpa.")
    if recipe.backend.compile and recipe.grpo.cache_implementation != "static":
        found.append('backend.compile wants grpo.cache_implementation = "static": set both.')
    found += [
        f"schedule.report_to: {tracker} is not installed: pip install {tracker}, or leave it out."
        for tracker in schedule.report_to
        if importlib.util.find_spec(tracker) is None
    ]
    if backend == "unsloth":
        if model.precision == "32bit":
            found.append(
                "unsloth trains in 16 or 4 bits: set model.precision, or backend.name=trl."
            )
        if schedule.generate_at_once:
            found.append(
                "unsloth generates all completions of a step at once: leave schedule.generate_at_once "
                "out, or set backend.name=trl."
            )
        if recipe.lora.targets == "all-linear":
            found.append("unsloth wants the modules by name: list them in lora.targets.")
        if recipe.backend.compile:
            found.append("unsloth compiles by itself: --set backend.compile=false.")
        if model.attention != "sdpa":
            found.append("unsloth chooses its own attention: leave model.attention at sdpa.")
    return found


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


def load_for_training(recipe: Recipe, backend: Backend) -> tuple[Any, Any]:
    """Return (model with a fresh adapter, tokenizer), the adapter drawn from the recipe's seed."""
    name = model_path(recipe.model.name)
    with _loading(name):
        model, tokenizer = (
            _load_unsloth(recipe, name)
            if backend.name == "unsloth"
            else _load(recipe, name, backend)
        )
    finish_tokenizer(tokenizer, recipe.model)
    return model, tokenizer


def load_for_inference(table: ModelTable, adapter: Path | None = None) -> tuple[Any, Any]:
    """Return (model, tokenizer) that only answers, with `adapter` on top if given."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    silence_libraries()
    cuda = torch.cuda.is_available()
    path = model_path(table.name)
    options: dict[str, Any] = {"revision": table.revision, "dtype": torch.float32}
    if cuda:
        options |= {"dtype": torch.bfloat16, "device_map": {"": 0}}
        if table.precision == "4bit":
            options["quantization_config"] = _four_bits(torch.bfloat16)
        if table.precision == "32bit":
            options["dtype"] = torch.float32
    with _loading(path):
        model = AutoModelForCausalLM.from_pretrained(path, **options)
        tokenizer = AutoTokenizer.from_pretrained(path, revision=table.revision)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
        if (adapter / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(str(adapter))
            table = table.model_copy(update={"chat_template": None})  # it brings the run's own
    finish_tokenizer(tokenizer, table)
    return model.eval(), tokenizer


def finish_tokenizer(tokenizer: Any, table: ModelTable) -> None:
    """Pad on the left; take the recipe's chat template; refuse a model without any."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if table.chat_template is not None:
        try:
            tokenizer.chat_template = table.chat_template.read_text("utf-8")
        except FileNotFoundError:
            raise WrongUse(f"There is no chat template {table.chat_template}.") from None
    if not tokenizer.chat_template:
        raise WrongUse(
            f"{table.name} has no chat template (it is a base model): take its Instruct version, "
            "or set model.chat_template to a Jinja file."
        )


def _load(recipe: Recipe, name: str, backend: Backend) -> tuple[Any, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    half = torch.bfloat16 if backend.bf16 else torch.float16
    options: dict[str, Any] = {
        "revision": recipe.model.revision,
        "attn_implementation": recipe.model.attention,
        "dtype": torch.float32 if recipe.model.precision == "32bit" else half,
    }
    if backend.cuda:
        options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    if recipe.model.precision == "4bit":
        options["quantization_config"] = _four_bits(half)
    model = AutoModelForCausalLM.from_pretrained(name, **options)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=recipe.model.revision)
    lora = recipe.lora
    set_seed(recipe.schedule.seed)
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


def _load_unsloth(recipe: Recipe, name: str) -> tuple[Any, Any]:
    from unsloth import FastLanguageModel

    seed, lora = recipe.schedule.seed, recipe.lora
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=name,
        revision=recipe.model.revision,
        max_seq_length=recipe.data.max_prompt_length + recipe.grpo.max_completion_length,
        load_in_4bit=recipe.model.precision == "4bit",
        load_in_16bit=recipe.model.precision == "16bit",
        full_finetuning=False,
        fast_inference=False,
        max_lora_rank=lora.r,
        random_state=seed,
        **(
            {"device_map": {"": int(os.environ["LOCAL_RANK"])}}
            if "LOCAL_RANK" in os.environ
            else {}
        ),
    )
    checkpointing: Any = "unsloth" if recipe.schedule.gradient_checkpointing else False
    model = FastLanguageModel.get_peft_model(
        model,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        use_rslora=lora.rslora,
        bias="none",
        use_gradient_checkpointing=checkpointing,
        random_state=seed,
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
                f"{self.name} does not fit the card: set model.precision=4bit, or take a smaller "
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
    """Why torch sees no card: none there, hidden, no driver, or a torch that was built without CUDA."""
    import torch

    if torch.version.cuda is None:
        if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
            return (
                "There is a card, but this torch was built without CUDA: install torch from "
                "PyTorch's own index (https://pytorch.org/get-started/locally)."
            )
        return "This torch was built without CUDA."
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every card: unset it."
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        return f"torch sees no card ({reason}): install or update the NVIDIA driver."
    return "torch sees no card: install or update the NVIDIA driver."


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
