"""GRPO on an 8B-shaped Llama: unsloth as its notebook sets it, unsloth and plain TRL by hand, and rig.

    python benchmarks/grpo_8b.py make MODEL              # random weights in the shape of Llama 3.1 8B, 15 GB
    python benchmarks/grpo_8b.py race MODEL              # every contender in turn, then the table
    python benchmarks/grpo_8b.py race MODEL --only c,d --tokens 512 --generations 8
    python benchmarks/grpo_8b.py race MODEL --together   # at the same time, a GPU for each

Random weights never end a sequence, so every completion runs to its limit and all contenders do the same
work on the same prompts. Needs a CUDA GPU, bitsandbytes and, for (a) and (b), unsloth. Each contender is a
process of its own. The first step is left out: it compiles. Memory is what torch reserves at its peak.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CONTENDERS = {
    "a": "unsloth, as its notebook sets it",
    "b": "unsloth by hand, with rig's portions",
    "c": "plain TRL + bitsandbytes",
    "d": "rig train {recipe}",
    "u": "rig train {recipe}, unsloth backend",
}
HIDE = {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "WANDB_DISABLED": "true"}


def make(folder: Path) -> None:
    """Write the model and a byte-level tokenizer in which every one of the 128,256 ids decodes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters={**rope, "rope_theta": 500000.0, "original_max_position_embeddings": 8192},
        bos_token_id=0,
        eos_token_id=4,
        pad_token_id=1,
    )
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="4GB")
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*special, "<|eot_id|>"], initial_alphabet=alphabet
    )
    raw.train_from_iterator(["how many cards has Bob left?"] * 50, trainer)
    raw.add_tokens([f"tok{i:06d}" for i in range(128256 - raw.get_vocab_size())])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=special[0], eos_token="<|eot_id|>", pad_token=special[1]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def questions() -> list[dict[str, str]]:
    """The same prompts for all."""
    ask = "Bob has {} cards and buys {} more, how many cards has he now?"
    return [{"question": ask.format(i, i + 3), "answer": str(2 * i + 3)} for i in range(640)]


def by_hand(contender: str, folder: str, shape: argparse.Namespace) -> dict[str, Any]:
    """Run (a), (b) or (c) in this process and return seconds per step and memory."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    if contender in "ab":
        from unsloth import FastLanguageModel
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rig.model.reply_format import TAUGHT

    if contender in "ab":
        model, tokenizer = FastLanguageModel.from_pretrained(
            folder, max_seq_length=shape.tokens + 256, load_in_4bit=True, fast_inference=False
        )
        model = FastLanguageModel.get_peft_model(
            model,
            r=32,
            lora_alpha=32,
            target_modules=TARGETS,
            use_gradient_checkpointing="unsloth",
            random_state=3407,
        )
        adapter = None
    else:
        from peft import LoraConfig, prepare_model_for_kbit_training
        from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

        tokenizer = AutoTokenizer.from_pretrained(folder)
        quantised = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_use_double_quant=True,
        )
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, device_map={"": 0}, quantization_config=quantised
        )
        model = prepare_model_for_kbit_training(model)
        adapter = LoraConfig(r=32, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")
    tokenizer.padding_side = "left"
    marks: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            marks.append(time.monotonic())

    def reward(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
        return [
            len(set(c[0]["content"])) % 7 + len(c[0]["content"]) % 100 / 100 for c in completions
        ]

    system = {"role": "system", "content": TAUGHT.system_prompt}
    rows = [{"prompt": [system, {"role": "user", "content": q["question"]}]} for q in questions()]
    whole = shape.generations * shape.prompts if contender == "b" else shape.generations
    micro = shape.micro if contender == "b" else shape.generations
    config = GRPOConfig(
        output_dir=str(Path.cwd() / "by_hand"),
        learning_rate=5e-6,
        optim="paged_adamw_8bit",
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=whole // micro,
        num_generations=shape.generations,
        max_completion_length=shape.tokens,
        max_steps=shape.steps + 1,
        max_grad_norm=0.1,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        bf16=True,
        beta=0.0,
        disable_tqdm=True,
        **({} if contender in "ab" else {"gradient_checkpointing": True}),
    )
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=[reward],
        args=config,
        train_dataset=Dataset.from_list(rows),
        peft_config=adapter,
        callbacks=[Clock()],
    )
    trainer.train()
    return result(whole, marks, torch.cuda.max_memory_reserved() / 2**30)


def by_rig(contender: str, folder: str, shape: argparse.Namespace) -> dict[str, Any]:
    """Run `rig train` with the shipped recipe and read what it logged."""
    data = Path("runs") / f"questions-{contender}.jsonl"
    data.parent.mkdir(exist_ok=True)
    data.write_text("".join(json.dumps(row) + "\n" for row in questions()), "utf-8")
    name = f"bench-{contender}-{time.time():.0f}-{os.getpid()}"
    changes = {
        "model.name": folder,
        "data.source": str(data.resolve()),
        "data.held_out": 8,
        "grpo.num_generations": shape.generations,
        "grpo.max_completion_length": shape.tokens,
        "schedule.prompts_per_step": shape.prompts,
        "schedule.micro_batch": shape.micro,
        "schedule.max_steps": shape.steps + 1,
        "schedule.save_every": 1000,
        "evaluation.problems": 0,
        "backend.preflight": "false",  # it stops a model that speaks gibberish, as this one does
        "backend.name": "unsloth" if contender == "u" else "trl",
        "watch.stop": "[]",
        "data.max_prompt_length": longest_prompt(folder),
    }
    if shape.at_once:
        changes["schedule.generate_at_once"] = shape.at_once
    changes |= dict(change.split("=", 1) for change in shape.set)
    command = [sys.executable, "-P", "-m", "rig", "train", shape.recipe, "--json"]
    command += [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    command += ["--gpus", str(shape.gpus)] if shape.gpus > 1 else []
    plan = subprocess.run([*command, "--plan"], stdout=subprocess.PIPE, text=True, check=True)
    predicted = json.loads(plan.stdout)["peak_gib"]
    done = subprocess.run(
        [*command, "--name", name], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        return {"failed": f"exit code {done.returncode}"}
    lines = (Path("runs") / name / "log.jsonl").read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "step" in row and "loss" in row]
    completions = shape.generations * shape.prompts
    peak = max(row["memory_gib"] for row in rows)
    found = result(completions, [row["seconds"] for row in rows], peak)
    return {**found, "predicted_gib": predicted}


def longest_prompt(folder: str) -> int:
    """Tokens of the longest prompt, so that `--plan` predicts for what is run."""
    from transformers import AutoTokenizer

    from rig.model.reply_format import TAUGHT

    tokenizer = AutoTokenizer.from_pretrained(folder)
    system = {"role": "system", "content": TAUGHT.system_prompt}
    texts = [
        tokenizer.apply_chat_template(
            [system, {"role": "user", "content": row["question"]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for row in questions()
    ]
    return max(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])


def result(completions: int, marks: list[float], peak: float) -> dict[str, Any]:
    """Completions a second from the ends of the steps, the first step left out."""
    spans = [later - earlier for earlier, later in itertools.pairwise(marks)]
    return {
        "completions": completions,
        "seconds": [round(span, 2) for span in spans],
        "rate": round(completions * len(spans) / sum(spans), 2),
        "reserved_gib": round(peak, 2),
    }


def race(folder: Path, shape: argparse.Namespace) -> None:
    """Every contender in a process of its own, in turn or each on its own GPU; a table at the end."""
    contenders = shape.only.split(",")
    gpus = (os.environ.get("CUDA_VISIBLE_DEVICES") or "0,1,2,3,4,5,6,7").split(",")
    found: dict[str, dict[str, Any]] = {}

    def run(contender: str) -> None:
        command = [sys.executable, __file__, "run", str(folder), "--contender", contender]
        for key in ("generations", "tokens", "prompts", "micro", "steps", "gpus", "recipe"):
            command += [f"--{key}", str(getattr(shape, key))]
        command += [f"--at-once={shape.at_once}", *(f"--set={change}" for change in shape.set)]
        cache = Path("runs").resolve() / f"by-hand-{contender}" / "unsloth_compiled_cache"
        cache.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, **HIDE, "UNSLOTH_COMPILE_LOCATION": str(cache)}
        if shape.together:
            env["CUDA_VISIBLE_DEVICES"] = gpus[contenders.index(contender)]
        elif shape.gpus == 1:  # transformers spreads a process over all GPUs it sees
            env["CUDA_VISIBLE_DEVICES"] = gpus[0]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        last = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        found[contender] = json.loads(last[-1][7:]) if last else {"failed": done.stderr[-1500:]}
        print(contender, round(time.monotonic() - started), "s", found[contender], flush=True)

    with ThreadPoolExecutor(len(contenders) if shape.together else 1) as pool:
        list(pool.map(run, contenders))
    found = {contender: found[contender] for contender in contenders}
    print(f"\n{shape.generations} generations x {shape.tokens} tokens, {versions()}\n")
    print(
        "| contender | completions a step | s a step | completions/s | reserved GiB | predicted | to (a) |"
    )
    print("|---|---|---|---|---|---|---|")
    base = found.get("a", {}).get("rate")
    for contender, one in found.items():
        if "rate" in one:
            ratio = f"{one['rate'] / base:.2f}" if base else "-"
            step = sum(one["seconds"]) / len(one["seconds"])
            name = CONTENDERS[contender].format(recipe=shape.recipe)
            print(
                f"| ({contender}) {name} | {one['completions']} | {step:.2f} | "
                f"{one['rate']:.2f} | {one['reserved_gib']:.2f} | {one.get('predicted_gib', '')} | {ratio} |"
            )


def versions() -> str:
    """Card and versions, for the table's caption."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    names = []
    for package in ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth"):
        try:
            names.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"{torch.cuda.get_device_name()}, {', '.join(names)}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["make", "race", "run"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", default="a,b,c,d")
    parser.add_argument("--contender", choices=list(CONTENDERS))
    parser.add_argument("--generations", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=12, help="prompts a step of (b) and (d)")
    parser.add_argument(
        "--micro", type=int, default=12, help="completions learnt from at once, (b) and (d)"
    )
    parser.add_argument("--steps", type=int, default=3, help="counted steps")
    parser.add_argument("--gpus", type=int, default=1, help="cards of (d)")
    parser.add_argument(
        "--at-once", type=int, default=0, help="completions (d) generates together (0 = all)"
    )
    parser.add_argument(
        "--together", action="store_true", help="all at the same time, each on a GPU of its own"
    )
    parser.add_argument("--set", action="append", default=[], help="a change to the recipe of (d)")
    parser.add_argument("--recipe", default="llama-3.1-8b-gsm8k-12gb")
    shape = parser.parse_args()
    if shape.what == "make":
        make(shape.model)
    elif shape.what == "race":
        race(shape.model, shape)
    else:
        run = by_rig if shape.contender in "du" else by_hand
        print("RESULT " + json.dumps(run(shape.contender, str(shape.model), shape)), flush=True)


if __name__ == "__main__":
    main()
