"""The weights: a Llama of four layers, trained from scratch with a plain loop, stored as bfloat16."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rig.atomic import write_bytes, write_text
from rig.model.reply_format import TAUGHT
from tools.toy_model.batches import Batch
from tools.toy_model.tokenizer import BEGIN, END, EOM, EOT, PAD, POSITIONS, VOCABULARY

WARM_UP = 100
COOL_DOWN = 0.5
"""The learning rate falls in a straight line over this last share of the steps."""
LOG_EVERY = 100


def new(tokenizer: Tokenizer, seed: int) -> LlamaForCausalLM:
    """Make the untrained model: 3.67 million parameters.

    Rows of 256 and 768 weights let the K-quants of GGUF apply; heads of 64 leave enough slow dimensions of
    RoPE to find a word again 4,000 tokens away.
    """
    torch.manual_seed(seed)
    ids = tokenizer.token_to_id
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        rms_norm_eps=1e-5,
        initializer_range=0.03,
        tie_word_embeddings=True,
        bos_token_id=ids(BEGIN),
        eos_token_id=[ids(EOT), ids(END), ids(EOM)],
        pad_token_id=ids(PAD),
    )
    return LlamaForCausalLM(config)


def _fused_norm(self: LlamaRMSNorm, hidden: torch.Tensor) -> torch.Tensor:
    """The same norm in one kernel instead of six; a model this small waits for kernels to be launched."""
    return torch.nn.functional.rms_norm(
        hidden, hidden.shape[-1:], self.weight, self.variance_epsilon
    )


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, which learns to copy several times sooner than AdamW; AdamW for the rest."""
    inner = [
        one for name, one in model.named_parameters() if one.dim() == 2 and "embed" not in name
    ]
    others = [one for name, one in model.named_parameters() if one.dim() == 1 or "embed" in name]
    return [
        torch.optim.Muon(inner, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    model: LlamaForCausalLM, made: Iterable[Batch], steps: int, lr: float, log: Callable[..., None]
) -> LlamaForCausalLM:
    """Train `model` on `steps` batches; the loss is on the replies.

    On a GPU the forward and backward pass use a bfloat16 copy, which is what is stored in the end; the
    weights that are stepped are float32.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    LlamaRMSNorm.forward = _fused_norm
    model = model.to(device).train()
    worker = model
    if device == "cuda":
        worker = copy.deepcopy(model).to(torch.bfloat16)
        worker.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)  # its angles need float32
    stepped, used = list(model.parameters()), list(worker.parameters())
    steppers = optimizers(model)
    losses: dict[int, list[torch.Tensor]] = {}
    began = time.monotonic()
    warm_up = max(1, min(WARM_UP, steps // 10))
    for step, batch in enumerate(made):
        rate = lr * min((step + 1) / warm_up, 1, (steps - step) / (COOL_DOWN * steps))
        ids = torch.from_numpy(batch.ids).to(device, non_blocking=True)
        weights = torch.from_numpy(batch.weights).to(device, non_blocking=True)[:, 1:].flatten()
        logits = worker(input_ids=ids, use_cache=False).logits[:, :-1]
        each = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
        )
        loss = (each * weights).sum() / weights.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        if worker is not model:
            for one, other in zip(stepped, used, strict=True):
                one.grad, other.grad = other.grad.float(), None
        torch.nn.utils.clip_grad_norm_(stepped, 1.0)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = rate
            stepper.step()
            stepper.zero_grad()
        if worker is not model:
            with torch.no_grad():
                torch._foreach_copy_(used, stepped)
        reply = weights == 1
        losses.setdefault(batch.size, []).append((each.detach() * reply).sum() / reply.sum())
        if (step + 1) % LOG_EVERY == 0 or step + 1 == steps:
            mean = {
                str(size): round(torch.stack(some).mean().item(), 4)
                for size, some in sorted(losses.items())
            }
            log(step=step + 1, seconds=round(time.monotonic() - began, 1), reply_loss=mean)
            losses.clear()
    return model.eval()


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write weights (bfloat16), configuration, generation settings and the form of reply."""
    from safetensors.torch import save as to_bytes

    model = model.to("cpu").to(torch.bfloat16)
    tensors = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    write_bytes(folder / "model.safetensors", to_bytes(tensors, metadata={"format": "pt"}))
    unused = (
        "_name_or_path", "id2label", "label2id", "problem_type", "output_attentions",
        "output_hidden_states", "return_dict", "chunk_size_feed_forward", "is_encoder_decoder",
    )  # fmt: skip
    config = {key: value for key, value in model.config.to_dict().items() if key not in unused}
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    settings = GenerationConfig(
        bos_token_id=config["bos_token_id"],
        eos_token_id=config["eos_token_id"],
        pad_token_id=config["pad_token_id"],
        do_sample=False,
    ).to_diff_dict()
    write_text(
        folder / "generation_config.json", json.dumps(settings, indent=2, sort_keys=True) + "\n"
    )
    TAUGHT.save_to(folder)


def load(folder: Path) -> Any:
    """Load the model in float32, on the card where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
