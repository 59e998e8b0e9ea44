"""A run from its first step, or from where it was, to its end: folder, signals, resume, and what is said at the end."""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import fields
from functools import partial
from pathlib import Path

import yaml

from megatron_rl import loop, preview
from megatron_rl.actor.parallel import Parallel
from megatron_rl.assemble import assemble, close, environment, plain_difference, value_fingerprint
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ERROR, PROMPT_ID, REWARD, STATUS
from megatron_rl.budget import Budget
from megatron_rl.checkpoint import CheckpointError
from megatron_rl.commands.configuration import folder_of
from megatron_rl.data.values import write_values
from megatron_rl.driver_log import FAILED, FINISHED, INTERRUPTED, REFUSED, DriverLog
from megatron_rl.evaluate import HeldOut
from megatron_rl.interpreter import staying
from megatron_rl.occupancy import Attempt, alone_in
from megatron_rl.own_code import own_code, told
from megatron_rl.ports import Context
from megatron_rl.rewards.pool import JudgeSettings
from megatron_rl.rollout.vllm import Vllm
from megatron_rl.schedule import Schedule
from megatron_rl.signals import listening
from megatron_rl.spec.describe import as_yaml
from megatron_rl.spec.earlier import completed
from megatron_rl.spec.run import RunSpec
from megatron_rl.spec.schema import SpecError
from megatron_rl.telemetry.sink import writing

CUT = tuple(f"actor.{field.name}" for field in fields(Parallel))
"""How the actor is cut over ranks: parameters and moments are the same at any other, last bits of a step are not."""
MACHINES = (
    *("actor.update.microbatch_tokens", "actor.recompute.", "cluster."),
    *(f"rollout.vllm.{field.name}" for field in fields(Vllm) if field.name not in ("context", "in_flight")),
)
"""What else other machines ask for: how much is computed at once, what is kept of it, and where engines stand."""
PATIENCE = tuple(f"judge.{field.name}" for field in fields(JudgeSettings) if field.name != "most_characters")
"""What answers may cost: a run that stopped over its grader goes on with more of it."""
SCHEDULE = tuple(f"schedule.{field.name}" for field in fields(Schedule) if field.name != "ahead")
"""When a run ends, saves and measures; `schedule.ahead` says which weights write what."""
MAY_CHANGE = (*SCHEDULE, "telemetry.", "evaluation.", "run.folder", *CUT, *MACHINES, *PATIENCE)
"""Keys that a resumed run may have otherwise than when it began."""


def train(spec: RunSpec, budget: Budget | None = None, attempt: Attempt | None = None) -> str:
    """Trains to the end, from the folder's latest checkpoint where there is one; returns what stopped it before."""
    with alone_in(folder_of(spec), attempt):
        return _train(spec, budget)


def _train(spec: RunSpec, budget: Budget | None) -> str:
    log = DriverLog(folder_of(spec))
    with listening(_end_now) as ear:
        try:
            run = assemble(spec)
        except (_EndedEarly, SystemExit):  # Ray leaves by the latter at a signal that comes while it starts
            if not ear.heard():
                raise
            return ear.heard()
        except Exception as error:
            if not isinstance(error, SpecError):  # a wrong request says nothing of the run
                log.keep(traceback.format_exc())
                log.end(FAILED)
            raise
        ear.stop = partial(setattr, run, "stopping")
        run.stopping = ear.heard()
        run.budget = budget
        return _carry_out(run, spec, log)


def _carry_out(run: loop.Run, spec: RunSpec, log: DriverLog) -> str:
    """SIGTERM and SIGUSR1 end the run after the step in hand, with a checkpoint."""
    reason, how = "failed", FAILED
    try:
        _claim(run, spec)
        log.begin()
        resumed = loop.resume(run)
        run.telemetry.start(run.step, run.schedule.steps)
        if resumed:
            print(f"resumed {run.folder} after step {run.step}", file=sys.stderr)
        with staying():
            loop.train(run)
        stopped = run.stopping if run.step < run.schedule.steps else ""
        reason = stopped or "finished"
        how = f"stopped, {stopped.removeprefix('stopped ')}" if stopped else FINISHED
        return stopped
    except KeyboardInterrupt:
        reason, how = "interrupted", INTERRUPTED
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        if isinstance(error, SpecError):
            how = REFUSED
        else:
            error.add_note(f"{run.step} steps were done, and the driver was in '{run.phase}'.")
            log.keep(traceback.format_exc())
        raise
    finally:
        try:
            close(run, reason)
        finally:
            log.end(how)


def values(spec: RunSpec, samples: int, target: Path) -> int:
    """Writes the rewards of `samples` rollouts of the model on every training prompt; returns how many prompts."""
    run = assemble(spec, is_value_run=True)
    try:
        run.weights.publish(0)
        asked = HeldOut(
            prompts=run.machines["prompts"],  # type: ignore[arg-type]
            engine=run.machines["engine"],  # type: ignore[arg-type]
            judge=run.machines["judge"],  # type: ignore[arg-type]
            samples=samples,
            sampling=run.machines["engine"].sampling,  # type: ignore[attr-defined]
            # Of its own: a value that holds the very rollout it is subtracted from would be biased.
            seed=int(Context(step=0, version=0, seed=run.seed).lasting_rng("values", 0).integers(1 << 62)),
        )
        judged = asked.answer()
        rewards = _rewards_of(judged)
        write_values(target, rewards, value_fingerprint(spec))
        return len(rewards)
    finally:
        close(run, "finished")


def _rewards_of(judged: Batch) -> dict[str, list[float]]:
    """By prompt; a rollout that failed says nothing about what the policy is worth."""
    rewards: dict[str, list[float]] = {name: [] for name in judged.strings(PROMPT_ID)}
    lived = zip(judged.strings(PROMPT_ID), judged.strings(STATUS), judged.numbers(REWARD).tolist(), strict=True)
    for name, status, reward in lived:
        if status == "ok":
            rewards[name].append(reward)
    if silent := [name for name, row in rewards.items() if not row]:
        error = next(text for name, text in zip(judged.strings(PROMPT_ID), judged.strings(ERROR), strict=True) if text)
        raise RuntimeError(
            f"no rollout of {len(silent)} of {len(rewards)} prompts came to an end, '{silent[0]}' first: {error}"
        )
    return rewards


def _claim(run: loop.Run, spec: RunSpec) -> None:
    """Writes what the run is made of into its folder; refuses a folder that another configuration began."""
    path = run.folder / "spec.yaml"
    if path.exists():
        began = completed(yaml.safe_load(path.read_text(encoding="utf-8")))
        now = yaml.safe_load(as_yaml(spec))
        changed = [key for key in plain_difference(began, now) if not key.startswith(MAY_CHANGE)]
        if changed:
            raise SpecError(
                f"{run.folder} was begun with other settings of {', '.join(changed[:6])}; "
                "give the run another run.name, or remove the folder."
            )
    aside = path.with_name(f".{path.name}.partial")
    facts = "".join(f"{line}\n" for line in preview.lines(spec))
    code, record = own_code(spec), run.folder / "environment.json"
    told(code, record)
    with writing(run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
        aside.write_text(as_yaml(spec), encoding="utf-8")
        aside.replace(path)
        (run.folder / "plan.txt").write_text(facts, encoding="utf-8")
        record.write_text(json.dumps(environment() | code, indent=1))


class _EndedEarly(BaseException):
    """A signal came before there was a run to save."""


def _end_now(reason: str) -> None:
    raise _EndedEarly(reason)


FAILURES = (CheckpointError, RuntimeError, OSError, ValueError)
"""What may go wrong in a run and is told in a sentence; anything else is a bug and keeps its traceback."""
