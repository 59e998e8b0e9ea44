"""Prints how fast this GPU multiplies, and how much of that the actor reaches: tokens/s and MFU, side by side.

    python tools/bench_gpu.py [--model 1.7b] [--precision bf16 fp8-tensorwise fp8-blockwise] [--json FILE]
    python tools/bench_gpu.py --tiny          # a few seconds on any machine, to see that it runs

MFU is against the rate measured here, in the same number format, not against a data sheet: an update's multiplications
(forward, twice that backward, causal attention at half) over its seconds over the rate of one large matrix product.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from megatron_rl.actor import groups
from megatron_rl.actor.attention import PackedAttention, packing
from megatron_rl.actor.cpu import device
from megatron_rl.actor.fused import has_transformer_engine, in_use
from megatron_rl.actor.megatron_actor import MegatronActor, Origin
from megatron_rl.actor.microbatch import cost_of
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recipe import LearningRate, OptimizerSettings, UpdateSettings
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import GROUP, PROMPT_TOKENS, TOKENS
from megatron_rl.objectives.likelihood import Likelihood
from megatron_rl.spec.schema import SpecError

HEADS, KV_HEADS, SIZE = 16, 8, 128


class Shape(NamedTuple):
    """A Qwen3-like model and the tokens of one update."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    matrix: int
    """Side of the matrix product that stands for the machine's rate."""
    tokens: int
    """Tokens of an update, in micro-batches of a quarter of them."""
    longest: int


MODELS = {
    "tiny": Shape(128, 256, 2, 4, 2, 32, 512, 256, 2048, 200),
    "0.6b": Shape(1024, 3072, 28, 16, 8, 128, 151936, 8192, 131072, 8192),
    "1.7b": Shape(2048, 6144, 28, 16, 8, 128, 151936, 8192, 131072, 8192),
}
PRECISIONS = ("bf16", "fp8-tensorwise", "fp8-delayed", "fp8-blockwise", "fp8-mxfp8")
Line = dict[str, Any]


def seconds(work: Callable[[], object], repeats: int = 10, warm: int = 3) -> float:
    """The median of some runs, after a few that compile and warm up."""
    taken = []
    for _ in range(warm + repeats):
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return float(np.median(taken[warm:]))


def product_rates(side: int) -> dict[str, float]:
    """Floating point operations a second of one large matrix product, by number format."""
    one, two = (torch.randn(side, side, device=device(), dtype=torch.bfloat16) for _ in range(2))
    rates = {"bf16": 2 * side**3 / seconds(lambda: one @ two)}
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9):
        left, right = one.to(torch.float8_e4m3fn), two.t().contiguous().to(torch.float8_e4m3fn).t()
        scale = torch.ones((), device=device())

        def product() -> Tensor:
            return torch._scaled_mm(
                left, right, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16, use_fast_accum=True
            )

        rates["fp8"] = 2 * side**3 / seconds(product)
    return rates


def lengths_of(total: int, longest: int) -> list[int]:
    """Long-tailed lengths that add up to about `total`."""
    draw, lengths = np.random.default_rng(0), list[int]()
    while sum(lengths) < total:
        lengths.append(int(np.clip(draw.lognormal(np.log(longest / 8), 0.9), 16, longest)))
    return lengths


def attention_lines(tokens: int, longest: int) -> list[Line]:
    """Forward and backward of packed attention: one kernel, a call for each run of equal lengths, the engine's."""
    lengths = lengths_of(tokens, longest)
    packed, total = packing(lengths, device()), sum(lengths)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    heads = [torch.randn(total, count, SIZE, device=device(), dtype=dtype) for count in (HEADS, KV_HEADS, KV_HEADS)]
    heads = [tensor.requires_grad_() for tensor in heads]
    ours = PackedAttention(SimpleNamespace(kv_channels=SIZE), inverse_R=torch.zeros(SIZE // 2, device=device()))
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours(*heads, packed_seq_params=packed),
        "run by run": lambda: ours._run_by_run(*heads, packed).flatten(1),
    }
    if has_transformer_engine():
        ways["transformer_engine"] = _engine(heads, packed)
    times = {name: seconds(lambda way=way: torch.autograd.grad(way().sum(), heads), 5) for name, way in ways.items()}
    return [
        {"what": f"attention, {name}", "tokens_per_s": total / taken, "speed_over_ours": times["ours"] / taken}
        for name, taken in times.items()
    ]


def _engine(heads: list[Tensor], packed: object) -> Callable[[], Tensor]:
    from transformer_engine.pytorch import DotProductAttention

    attention = DotProductAttention(HEADS, SIZE, num_gqa_groups=KV_HEADS, attn_mask_type="padding_causal")
    bounds, longest = packed.cu_seqlens_q, packed.max_seqlen_q  # type: ignore[attr-defined]
    given = {"cu_seqlens_q": bounds, "cu_seqlens_kv": bounds, "max_seqlen_q": longest, "max_seqlen_kv": longest}
    return lambda: attention(*heads, qkv_format="thd", **given)


def batch_of(lengths: Sequence[int], vocabulary: int) -> Batch:
    """Prompts of one token, so that nearly every token is trained on."""
    draw = np.random.default_rng(1)
    tokens = [draw.integers(0, vocabulary, length).tolist() for length in lengths]
    return Batch.of({GROUP: list(range(len(lengths))), PROMPT_TOKENS: [[1]] * len(lengths), TOKENS: tokens})


def model_folder(shape: Shape, folder: Path) -> Path:
    """Random weights in BF16."""
    config = Qwen3Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        max_position_embeddings=2 * shape.longest,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    with torch.device(device()):
        model = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def actor_line(folder: Path, shape: Shape, name: str, rates: dict[str, float]) -> Line:
    """One update in this precision: tokens a second, and the share of the measured rate."""
    # What held the last actor's tensors refers to itself, and two of these may not fit a GPU.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    compute, _, recipe = name.partition("-")
    precision = Precision(compute=compute, recipe=recipe) if recipe else Precision(compute=compute)  # type: ignore[arg-type]
    settings = ActorSettings(
        precision=precision,
        optimizer=OptimizerSettings(learning_rate=LearningRate(peak=1e-6)),
        update=UpdateSettings(microbatch_tokens=shape.tokens // 4),
    )
    try:
        actor = MegatronActor(settings, Origin(folder=folder))
    except SpecError as error:
        return {"what": f"actor, {name}", "skipped": str(error)}
    lengths = lengths_of(shape.tokens, shape.longest)
    batch, cost = batch_of(lengths, shape.vocabulary), cost_of(actor.model.architecture)
    taken = seconds(lambda: actor.update(batch, Likelihood()), 3, 2)
    scoring = seconds(lambda: actor.score(batch), 3, 1)
    rate = 6 * sum(cost.of(length) for length in lengths) / taken
    line = {
        "what": f"actor, {name}",
        "tokens_per_s": sum(lengths) / taken,
        "score_tokens_per_s": sum(lengths) / scoring,
        "tflops": rate / 1e12,
        "mfu_of_bf16": rate / rates["bf16"],
    }
    if "fp8" in rates and compute == "fp8":
        line["mfu_of_fp8"] = rate / rates["fp8"]
    if torch.cuda.is_available():
        line["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return line


def show(line: Line) -> str:
    numbers = [f"{key} {value:,.3g}" if isinstance(value, float) else f"{value}" for key, value in line.items()]
    return "  ".join(numbers)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(MODELS), default="1.7b", help="size of the actor (default 1.7b)")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS[:4], help="what to compute in")
    parser.add_argument("--tiny", action="store_true", help="the model 'tiny' in bf16, without waiting for anything")
    parser.add_argument("--json", type=Path, help="also write the lines to this file")
    chosen = parser.parse_args(arguments)
    if not (chosen.tiny or torch.cuda.is_available()):
        sys.stderr.write("This machine has no CUDA device; add --tiny to see that the benchmark runs.\n")
        return 2
    shape = MODELS["tiny" if chosen.tiny else chosen.model]
    groups.join_alone()
    groups.cut(ActorSettings())
    rates = product_rates(shape.matrix)
    lines: list[Line] = [{"what": f"matrix product, {name}", "tflops": rate / 1e12} for name, rate in rates.items()]
    lines += attention_lines(shape.tokens // 4, shape.longest)
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(shape, Path(scratch))
        for name in ("bf16",) if chosen.tiny else chosen.precision:
            lines.append(actor_line(folder, shape, name, rates))
    groups.leave()
    print(f"{device()}  layers by {in_use()}")
    print("\n".join(show(line) for line in lines))
    if chosen.json:
        chosen.json.write_text(json.dumps(lines, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
