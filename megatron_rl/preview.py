"""What a run would be and take, without starting it: its settings, its equation, its weights' way and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from megatron_rl.actor.architecture import describe
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.planner.buffers import static
from megatron_rl.reshard.bound import missing_by_gpu
from megatron_rl.reshard.engines import huggingface_layout, vllm_layout
from megatron_rl.reshard.layout import Layout, ModelShape
from megatron_rl.reshard.megatron import megatron_layout
from megatron_rl.reshard.placement import split
from megatron_rl.reshard.plan import plan
from megatron_rl.spec.describe import as_yaml
from megatron_rl.spec.files import read_model_config
from megatron_rl.spec.resolve import build
from megatron_rl.spec.run import Part, RunSpec

MIB: Final = 2**20


def preview(spec: RunSpec) -> str:
    """The resolved run as YAML; what follows from it stands in comments, so the text is still that run."""
    return _annotated(spec, lines(spec))


def outline(spec: RunSpec) -> str:
    """The part of it that can be told without the model."""
    return _annotated(spec, _outlines(spec))


def lines(spec: RunSpec) -> Iterator[str]:
    """What follows from the settings, one fact a line."""
    yield from _outlines(spec)
    actor, architecture = _actor(spec), describe(read_model_config(spec))
    shape = architecture.shape
    source, target = megatron_layout(shape, actor), _engine_layout(shape, spec.choices["rollout"])
    yield weights(source, target, 4 if actor.precision.compute == "fp32" else 2)
    yield memory(shape, actor)
    yield from room(_number(spec.settings["sampling"].values, "max_tokens"), architecture.context)
    is_one_process = actor.world == 1 and spec.choices["rollout"].name == "embedded"
    ahead = _number(spec.settings["schedule"].values, "ahead")
    yield order(ahead, is_one_process, in_flight=bool(spec.choices["rollout"].values.get("in_flight")))


def _outlines(spec: RunSpec) -> Iterator[str]:
    actor = _actor(spec)
    yield equation(spec, actor)
    is_split = spec.settings["cluster"].values["placement"] == "split"
    yield from processes(actor, spec.choices["rollout"], is_split)


def equation(spec: RunSpec, actor: ActorSettings) -> str:
    """prompts x samples = rows = steps x rows of a step, shared out to dp ranks."""
    sampler = spec.choices["sampler"].values
    prompts, samples = _number(sampler, "prompts"), _number(sampler, "samples")
    drawn = f"{samples} samples"
    if not samples:
        samples = _number(sampler, "screen") + _number(sampler, "more")
        drawn = f"({_number(sampler, 'screen')} screening + {_number(sampler, 'more')} more) samples"
    rows, steps = prompts * samples, actor.update.steps
    plural = "s" * (steps > 1)
    return (
        f"{prompts} prompts x {drawn} = {rows} rows = {steps} optimizer step{plural} x {rows / steps:g} rows, "
        f"over dp {actor.dp}, in micro-batches of at most {actor.update.microbatch_tokens} tokens"
    )


def processes(actor: ActorSettings, rollout: Part, is_split: bool) -> Iterator[str]:
    """Who runs where."""
    tp, replicas = _number(rollout.values, "tp", 1), _number(rollout.values, "replicas", 1)
    beside = "" if rollout.name == "embedded" else f", {replicas} vLLM group{'s' * (replicas > 1)} of tp {tp}"
    if actor.world == 1:
        yield f"processes: actor and driver are one{beside or ', the engine too'}"
        return
    if beside:
        beside += f", each on one machine, {'on GPUs of its own' if is_split else 'sharing the GPUs of ranks'}"
    cut = " x ".join(f"{name} {getattr(actor, name)}" for name in ("tp", "cp", "pp", "dp") if getattr(actor, name) > 1)
    yield f"processes: {actor.world} ranks under Ray ({cut}){beside or ', the engine in the driver'}"


def order(ahead: int, is_one_process: bool, in_flight: bool = False) -> str:
    """Which weights write the batch of a step."""
    if not ahead:
        return "order: collect, learn, publish, in turn; batch s is written by version s"
    versions = f"versions max(0, s - {ahead}) to s, as they come" if in_flight else f"version max(0, s - {ahead})"
    return (
        f"order: batch s + {ahead} is written while the actor learns from batch s; batch s is written by {versions}"
        + "; engine and actor share this process, so no time is saved" * is_one_process
    )


def weights(source: Layout, target: Layout, item_bytes: int) -> str:
    """What one sync moves, against the fewest bytes that it could."""
    placement = split(source, target)
    made = plan(source, target, placement)
    moved = sum(made.elements(transfer) for rank in range(len(target.ranks)) for transfer in made.incoming(rank))
    bound = sum(missing_by_gpu(source, target, placement, set(placement.target)).values())
    ratio = moved / bound if bound else 1.0
    return (
        f"weights: {source.label} -> {target.label}, {moved * item_bytes / MIB:.1f} MiB a sync from device to device, "
        f"bound {bound * item_bytes / MIB:.1f} MiB, ratio {ratio:.3f}"
    )


def memory(shape: ModelShape, actor: ActorSettings) -> str:
    """Bytes of the fullest rank that do not depend on the batch."""
    held = max((static(shape, actor, stage) for stage in range(actor.pp)), key=sum)
    copies = 2 if actor.reference == "device" and actor.lora is None else 1
    parts = {
        "parameters": copies * held.parameters,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
    }
    told = ", ".join(f"{name} {size / MIB:.1f}" for name, size in parts.items())
    return f"memory of the fullest rank, activations aside: {sum(parts.values()) / MIB:.1f} MiB ({told})"


def room(max_tokens: int, context: int) -> Iterator[str]:
    """Told where a response cannot be as long as it may: a penalty for long ones, say, would never be paid."""
    if max_tokens >= context:
        yield (
            f"room: the model reads {context} tokens, prompt included, so responses end before sampling.max_tokens "
            f"of {max_tokens}"
        )


def _annotated(spec: RunSpec, lines: Iterator[str]) -> str:
    return as_yaml(spec) + "\n" + "".join(f"# {line}\n" for line in lines)


def _actor(spec: RunSpec) -> ActorSettings:
    actor = build(spec.settings["actor"])
    assert isinstance(actor, ActorSettings), "its type is known to the specification"
    return actor


def _engine_layout(shape: ModelShape, rollout: Part) -> Layout:
    if rollout.name == "embedded":
        return huggingface_layout(shape)
    return vllm_layout(shape, _number(rollout.values, "tp", 1), _number(rollout.values, "replicas", 1))


def _number(values: Mapping[str, object], key: str, default: int = 0) -> int:
    value = values.get(key, default)  # a choice of another kind has other keys
    assert isinstance(value, int), f"{key} was checked to be a whole number"
    return value
