"""One measured run: a shipped configuration, what is changed in it, a seed. A finished one is not run again."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_rl import loop
from megatron_rl.assemble import assemble, close, value_fingerprint
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import PROMPT_ID, REWARD, TOKENS
from megatron_rl.data.arithmetic import Arithmetic
from megatron_rl.data.prompt_file import write_prompts
from megatron_rl.data.values import write_values
from megatron_rl.evaluate import HeldOut
from megatron_rl.spec.load import SHIPPED, load
from megatron_rl.spec.run import RunSpec
from tools.claims.apart import apart
from tools.claims.kept import kept
from tools.claims.ledger import Ledger, MeteredActor, MeteredCritic, MeteredEngine, MeteredJudge, Spending
from tools.claims.start import WarmStart

HELD_OUT_SEED, TRAIN_SEED = 2_000_003, 3_000_017


@dataclass(frozen=True, kw_only=True)
class Levels:
    """`count` problems of the levels easiest to hardest: Levels(easiest=1, hardest=2, count=64)."""

    easiest: int
    hardest: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every arm of a claim trains on and is measured on."""

    train: tuple[Levels, ...]
    held_out: tuple[Levels, ...]
    samples: int = 2
    """Sampled answers of each held-out prompt, at the temperature of training."""
    max_tokens: int = 56
    warm_up: int = 1500
    """Steps of the warm start."""

    def write(self, folder: Path, seed: int) -> dict[str, Path]:
        """The two prompt files; no held-out problem is trained on."""
        texts: set[str] = set()
        files = {}
        for name, parts, base in (("held_out", self.held_out, HELD_OUT_SEED), ("train", self.train, TRAIN_SEED)):
            problems = []
            for place, part in enumerate(parts):
                kind = Arithmetic(easiest=part.easiest, hardest=part.hardest)
                problems += list(kind.problems(part.count, seed=base + 101 * seed + place, without=texts))
                texts |= {problem.text for problem in problems}
            files[name] = folder / f"{name}.parquet"
            write_prompts(files[name], (problem.prompt for problem in problems))
        return files


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method with its settings, by the name it has in the table."""

    name: str
    config: str
    """A shipped configuration: 'grpo' is configs/grpo.yaml."""
    changes: tuple[str, ...] = ()
    """Overrides, as on the command line."""
    value_samples: int = 0
    """Rollouts of the start on every prompt before the run, whose rewards it then reads; 0 asks for none."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How long, how often measured, and until when."""

    steps: int
    evaluate_every: int
    target: float = 2.0
    """A run ends where its accuracy reaches this; beyond 1 never."""
    kept: tuple[str, ...] = ()
    """Metrics of each step that are kept beside what it spent."""
    changes: tuple[str, ...] = ()
    """Overrides that all arms share."""
    apart: bool = False
    """Each run in a process of its own, for its peak memory."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished run spent, running totals after each step and at each evaluation."""

    arm: str
    seed: int
    steps: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Runs arms of one task one after another, each in this process; `work` keeps starts and finished runs."""

    work: Path
    claim: str
    task: Task
    protocol: Protocol

    def results(self, arms: Sequence[Arm], seeds: Sequence[int]) -> list[Result]:
        """Every arm at every seed; what an earlier call finished under the same settings is read back."""
        return [self._result(arm, seed) for seed in seeds for arm in arms]

    def _result(self, arm: Arm, seed: int) -> Result:
        identity = repr((arm, seed, self.task, self.protocol))

        def make() -> dict[str, object]:
            return apart(lambda: vars(self.run(arm, seed))) if self.protocol.apart else vars(self.run(arm, seed))

        result = Result(**kept(self.work / f"{self.claim}.jsonl", identity, make))
        print(f"{self.claim}: {arm.name} seed {seed}: {_said(result)}", flush=True)
        return result

    def run(self, arm: Arm, seed: int) -> Result:
        model = WarmStart(seed=0, steps=self.task.warm_up).folder(self.work)
        with tempfile.TemporaryDirectory() as scratch:
            spec, spent = self.spec(arm, seed, model, Path(scratch)), Spending()
            if arm.value_samples:
                _values(spec, arm.value_samples, spent)
            run = assemble(spec)
            try:
                return self._train(run, spent, arm, seed)
            finally:
                close(run, "finished")

    def spec(self, arm: Arm, seed: int, model: Path, folder: Path) -> RunSpec:
        files = self.task.write(folder, seed)
        written = [
            "extends=base/toy.yaml",
            f"run.folder={folder}",
            f"run.seed={seed}",
            f"model.folder={model}",
            f"data.train=[{files['train']}]",
            f"data.evaluate=[{files['held_out']}]",
            f"evaluation.samples={self.task.samples}",
            f"sampling.max_tokens={self.task.max_tokens}",
            f"schedule.steps={self.protocol.steps}",
            f"schedule.evaluate_every={self.protocol.evaluate_every}",
            "schedule.save_every=0",
            "judge.processes=1",
            "reward={exact: {after: <answer>, finished: true}}",
        ]
        asked = (f"data.values={folder / 'values.parquet'}",) if arm.value_samples else ()
        return load(SHIPPED / f"{arm.config}.yaml", (*written, *self.protocol.changes, *arm.changes, *asked))

    def _train(self, run: loop.Run, spent: Spending, arm: Arm, seed: int) -> Result:
        protocol = self.protocol
        run.machines["engine"].progress = None  # type: ignore[attr-defined]  # the embedded engine's
        run.machines = metered(run.machines, spent)
        run.actor = run.machines["actor"]  # type: ignore[assignment]
        ledger = Ledger(run=run, spent=spent, kept=protocol.kept, target=protocol.target)
        run.telemetry = ledger
        ledger.start(0, protocol.steps)
        loop.train(run)
        return Result(arm=arm.name, seed=seed, steps=ledger.steps, evaluations=ledger.evaluations)


def answers(run: loop.Run, samples: int) -> Batch:
    """`samples` judged rollouts of every training prompt, by the weights that the engine has."""
    machines = run.machines
    asked = HeldOut(
        prompts=machines["prompts"],  # type: ignore[arg-type]
        engine=machines["engine"],  # type: ignore[arg-type]
        judge=machines["judge"],  # type: ignore[arg-type]
        samples=samples,
        sampling=machines["engine"].sampling,  # type: ignore[attr-defined]
        seed=run.seed,
    )
    return asked.answer()


def _values(spec: RunSpec, samples: int, spent: Spending) -> None:
    """`megatron-rl values`, counted."""
    run = assemble(spec, is_value_run=True)
    try:
        run.machines["engine"].progress = None  # type: ignore[attr-defined]  # the embedded engine's
        run.weights.publish(0)
        with spent.on("values"):
            judged = answers(run, samples)
        spent.totals["tokens/values"] += len(judged.ragged(TOKENS).values)
        rewards: dict[str, list[float]] = {}
        for name, reward in zip(judged.strings(PROMPT_ID), judged.numbers(REWARD).tolist(), strict=True):
            rewards.setdefault(name, []).append(reward)
        write_values(Path(str(spec.settings["data"].values["values"])), rewards, value_fingerprint(spec))
    finally:
        close(run, "finished")


def metered(machines: Mapping[str, object], spent: Spending) -> dict[str, object]:
    """The machines of a run, each counting what it is asked for."""
    critic = {"critic": MeteredCritic(critic=machines["critic"], spent=spent)} if "critic" in machines else {}  # type: ignore[arg-type]
    return {
        **machines,
        **critic,
        "engine": MeteredEngine(engine=machines["engine"], spent=spent),  # type: ignore[arg-type]
        "actor": MeteredActor(actor=machines["actor"], spent=spent),  # type: ignore[arg-type]
        "judge": MeteredJudge(judge_=machines["judge"], spent=spent),  # type: ignore[arg-type]
    }


def _said(result: Result) -> str:
    last = result.evaluations[-1] if result.evaluations else {}
    spent = result.steps[-1]
    return (
        f"{len(result.steps)} steps, accuracy {last.get('accuracy', float('nan')):.3f}, "
        f"{spent['tokens/generated']:.0f} tokens, {spent['processor/all']:.0f} s"
    )
