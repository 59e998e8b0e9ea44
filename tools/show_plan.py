"""Prints the plan between two layouts, or the table of typical ones.

    python tools/show_plan.py                              every preset, ours against gather-and-slice
    python tools/show_plan.py --preset llama-3.1-405b      one of them, what each sender sends, sample copies
    python tools/show_plan.py config.json --source megatron:tp=2,pp=2,dp=2 --target vllm:tp=4,replicas=2

A layout is `megatron:` with tp, pp, vpp, dp, cp, ep and layers=7+8+7 for uneven stages, `vllm:` with tp and replicas,
or `hf:` with replicas. `bytes` enter a GPU from another; `in place` is copied or aliased where it is; `gathered` is
what would enter the same GPUs if each gathered whole tensors and sliced them. From metadata alone: no weights, no GPU.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.bound import gather_bytes, wire_bound
from megatron_rl.reshard.engines import huggingface_layout, vllm_layout
from megatron_rl.reshard.layout import Box, Layout, LayoutError, ModelShape
from megatron_rl.reshard.megatron import megatron_layout
from megatron_rl.reshard.placement import Placement, colocated, split, together
from megatron_rl.reshard.plan import ReshardPlan, Slice, plan
from megatron_rl.spec.files import read_object
from megatron_rl.spec.schema import SpecError

PLACEMENTS: Mapping[str, Callable[[Layout, Layout], Placement]] = {
    "colocated": colocated,
    "split": split,
    "together": together,
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model and how it is trained and served; sizes are those of the published config.json."""

    config: Mapping[str, object]
    source: str
    target: str
    placement: str = "colocated"


def _config(
    family: str, layers: int, hidden: int, heads: str, ffn: int, vocabulary: int, **more: object
) -> dict[str, object]:
    """`heads` is query heads / key-value heads / size of a head."""
    queries, keys, size = (int(number) for number in heads.split("/"))
    return {
        "model_type": family,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": queries,
        "num_key_value_heads": keys,
        "head_dim": size,
        "intermediate_size": ffn,
        "vocab_size": vocabulary,
        **more,
    }


_QWEN_1_5B = _config("qwen2", 28, 1536, "12/2/128", 8960, 151936, tie_word_embeddings=True)
_QWEN_7B = _config("qwen2", 28, 3584, "28/4/128", 18944, 152064)
_QWEN_32B = _config("qwen2", 64, 5120, "40/8/128", 27648, 152064)
_QWEN_30B_A3B = _config("qwen3_moe", 48, 2048, "32/4/128", 6144, 151936, num_experts=128, moe_intermediate_size=768)
_LLAMA_70B = _config("llama", 80, 8192, "64/8/128", 28672, 128256)
_LLAMA_405B = _config("llama", 126, 16384, "128/8/128", 53248, 128256)

PRESETS = {
    "qwen2.5-1.5b": Preset(config=_QWEN_1_5B, source="megatron:dp=8", target="vllm:tp=1,replicas=8"),
    "qwen2.5-7b": Preset(config=_QWEN_7B, source="megatron:tp=2,dp=4", target="vllm:tp=2,replicas=4"),
    "qwen2.5-7b-pipeline": Preset(config=_QWEN_7B, source="megatron:tp=2,pp=2,dp=2", target="vllm:tp=4,replicas=2"),
    "qwen2.5-32b": Preset(config=_QWEN_32B, source="megatron:tp=8,pp=2,dp=2", target="vllm:tp=4,replicas=8"),
    "qwen2.5-32b-split": Preset(
        config=_QWEN_32B, source="megatron:tp=8,pp=2,dp=1", target="vllm:tp=4,replicas=4", placement="split"
    ),
    "qwen3-30b-a3b": Preset(config=_QWEN_30B_A3B, source="megatron:tp=2,dp=8,ep=8", target="vllm:tp=4,replicas=4"),
    "llama-3.1-70b": Preset(config=_LLAMA_70B, source="megatron:tp=8,pp=4,dp=4", target="vllm:tp=8,replicas=16"),
    "llama-3.1-70b-vpp": Preset(
        config=_LLAMA_70B, source="megatron:tp=4,pp=4,vpp=5,dp=8", target="vllm:tp=8,replicas=16"
    ),
    "llama-3.1-405b": Preset(
        config=_LLAMA_405B,
        source="megatron:tp=8,pp=16,dp=8,layers=7+" + "8+" * 14 + "7",
        target="vllm:tp=8,replicas=128",
    ),
}


def read_layout(text: str, shape: ModelShape) -> Layout:
    """The layout that a word of the command line describes."""
    kind, _, rest = text.partition(":")
    written = [setting.partition("=")[::2] for setting in rest.split(",") if setting]
    settings = dict(written)
    if len(settings) < len(written):
        raise LayoutError(f"layout {text!r} sets something twice; say it once.")
    counts = settings.pop("layers", "").split("+") if "layers" in settings else []
    if not all(count.isdecimal() for count in counts):
        raise LayoutError(f"layout {text!r} should list its layers as in layers=7+8+7.")
    stages = tuple(int(count) for count in counts)
    if wrong := [f"{name}={value}" for name, value in settings.items() if not value.isdecimal() or int(value) < 1]:
        raise LayoutError(f"layout {text!r} says {wrong[0]}, which should be a whole number above 0.")
    numbers = {name: int(value) for name, value in settings.items()}
    known = {"megatron": {"tp", "pp", "vpp", "dp", "cp", "ep"}, "vllm": {"tp", "replicas"}, "hf": {"replicas"}}
    if kind not in known:
        raise LayoutError(f"layout {text!r} is of kind {kind!r}, but the kinds are {', '.join(known)}.")
    if strange := sorted(numbers.keys() - known[kind]):
        raise LayoutError(f"layout {text!r} sets {strange[0]!r}, but {kind} knows {', '.join(sorted(known[kind]))}.")
    if stages and kind != "megatron":
        raise LayoutError(f"layout {text!r} sets 'layers', but only megatron has stages.")
    if kind == "megatron":
        cut = dict.fromkeys(known[kind], 1) | numbers
        tp, pp, vpp, dp, cp, ep = (cut[name] for name in ("tp", "pp", "vpp", "dp", "cp", "ep"))
        return megatron_layout(shape, Parallel(tp=tp, pp=pp, vpp=vpp, dp=dp, cp=cp, ep=ep, stage_layers=stages))
    return vllm_layout(shape, **({"tp": 1} | numbers)) if kind == "vllm" else huggingface_layout(shape, **numbers)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan, what the bound and the usual way of doing it say, and how long planning took."""

    plan: ReshardPlan
    bound: int
    gathered: int
    seconds: float


def make(preset: Preset) -> Planned:
    """Layouts, placement and plan, timed together; then the bound."""
    shape = ModelShape.of(preset.config)
    begun = time.perf_counter()
    source, target = read_layout(preset.source, shape), read_layout(preset.target, shape)
    placement = PLACEMENTS[preset.placement](source, target)
    made = plan(source, target, placement)
    seconds = time.perf_counter() - begun
    return Planned(
        plan=made,
        bound=wire_bound(source, target, placement),
        gathered=gather_bytes(source, target, placement),
        seconds=seconds,
    )


HEADINGS = (
    "model",
    "from",
    "to",
    "placement",
    "GPUs",
    "plan",
    "bytes",
    "bound",
    "ratio",
    "in place",
    "gathered",
    "ours/gathered",
)


def row(name: str, preset: Preset, made: Planned) -> tuple[str, ...]:
    """One line of the table."""
    moved, gpus = made.plan.wire_bytes, {*made.plan.placement.source, *made.plan.placement.target}
    return (
        name,
        made.plan.source.label,
        made.plan.target.label,
        preset.placement,
        str(len(gpus)),
        f"{made.seconds * 1e3:.0f} ms",
        amount(moved),
        amount(made.bound),
        f"{moved / made.bound:.3f}" if made.bound else "1.000" if not moved else "inf",
        amount(made.plan.local_bytes),
        amount(made.gathered),
        f"{moved / made.gathered:.1%}" if made.gathered else "-",
    )


def amount(size: int) -> str:
    """Bytes for people."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} B"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def details(made: Planned, copies: int) -> str:
    """What the senders send, and the first copies."""
    chosen = made.plan
    sent = sorted(elements * chosen.source.shape.item_bytes for elements in chosen.sent_elements)
    moved = [transfer for transfer in chosen.transfers if not transfer.is_local]
    pairs = {(transfer.sender, transfer.receiver) for transfer in moved}
    lines = [
        f"a sender sends {amount(sent[0])} to {amount(sent[-1])}, {amount(sum(sent) // len(sent))} on average",
        f"{len(chosen.transfers)} transfers, {len(moved)} of them between GPUs as {len(pairs)} messages, more if split",
        f"peak memory of this process {amount(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)}",
    ]
    shown = (
        (f"{copy.sender}", f"{copy.receiver}", spell(copy.source), spell(copy.target), f"{copy.elements}")
        for copy in islice(chosen.copies(), max(0, copies))
    )
    if copies > 0:
        lines += ["", table(("sender", "receiver", "from", "to", "elements"), shown)]
    return "\n".join(lines)


def spell(place: Slice) -> str:
    """A slice as Python writes it."""
    chunk = f"chunk {place.key.chunk} " if place.key.chunk else ""
    return f"{chunk}{place.key.name}[{ranges(place.box)}]"


def ranges(box: Box) -> str:
    """The intervals of a box."""
    return ", ".join(f"{start}:{stop}" for start, stop in box)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, help="config.json of the model")
    parser.add_argument("--preset", choices=sorted(PRESETS))
    parser.add_argument("--source", default="megatron:", help="layout the weights are in")
    parser.add_argument("--target", default="vllm:tp=1", help="layout the weights go to")
    parser.add_argument("--placement", choices=sorted(PLACEMENTS), default="colocated")
    parser.add_argument("--copies", type=int, default=12, help="sample copies to print")
    chosen = parser.parse_args(arguments)
    presets = {chosen.preset: PRESETS[chosen.preset]} if chosen.preset else PRESETS
    try:
        if chosen.config:
            config = read_object(chosen.config, str(chosen.config))
            own = Preset(config=config, source=chosen.source, target=chosen.target, placement=chosen.placement)
            presets = {chosen.config.parent.name or chosen.config.name: own}
        made = {name: make(preset) for name, preset in presets.items()}
    except (LayoutError, SpecError) as error:
        print(f"show_plan: {error}", file=sys.stderr)
        return 2
    print(table(HEADINGS, [row(name, presets[name], one) for name, one in made.items()]))
    for one in made.values() if len(made) == 1 else ():
        print("\n" + details(one, chosen.copies))
    return 0


if __name__ == "__main__":
    sys.exit(main())
