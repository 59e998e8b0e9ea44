"""Prints what weights in flight cost and bring: waves that take weights in their middle, and runs with and without.

    python -m tools.bench_in_flight [--rows 64] [--tokens 192] [--waves 9] [--steps 10] [--rounds 3]

With vLLM. First waves of responses that are all as long, while 0, 1, 2 and 4 times weights come, evenly spread. Then
runs in turn, ahead, and ahead with weights in flight; what they train learnt nothing and ends its responses by chance.
Rounds of all ways alternate, so that what else the machine does falls on all alike. Figures are medians over the
rounds, ratios those within a round, with the least and the most.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import psutil
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs as a script, from anywhere

from megatron_rl.actor import groups
from megatron_rl.actor.megatron_actor import MegatronActor, Origin
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BUDGET, PROMPT_TOKENS, SEED, TOKEN_VERSIONS, TOKENS
from megatron_rl.beside import beside
from megatron_rl.data.arithmetic import Arithmetic
from megatron_rl.data.prompt_file import write_prompts
from megatron_rl.data.tiny_model import VOCABULARY, write_tiny_model
from megatron_rl.ports import WeightSync
from megatron_rl.processes import in_process_sync
from megatron_rl.rollout.settings import SamplingSettings
from megatron_rl.rollout.vllm import ServedModel, Vllm
from megatron_rl.rollout.vllm_engine import VllmEngine
from megatron_rl.rollout.vocabulary import Vocabulary
from tools.bench_ahead import WARM, row, train

UPDATES: Final = (0, 1, 2, 4)
"""How often weights come in the middle of a wave."""
PROMPT: Final = 24
CONTEXT: Final = 256
"""Of the model: most tokens of a prompt with its response."""
SERVED: Final = {"cache_gib": 0.25, "context": CONTEXT}
WAYS: Final = {
    "in turn": {"ahead": 0, "in_flight": False},
    "1 ahead": {"ahead": 1, "in_flight": False},
    "1 ahead, in flight": {"ahead": 1, "in_flight": True},
    "2 ahead, in flight": {"ahead": 2, "in_flight": True},
}
TICK_S: Final = 0.002


class Sizes(NamedTuple):
    """How much of everything."""

    rows: int
    tokens: int
    waves: int
    """Rounds of waves; none are written at 0."""
    steps: int
    rounds: int
    """Rounds of runs; none are begun at 0."""


class Wave(NamedTuple):
    """What one wave came to."""

    seconds: float
    processor: float
    """Seconds that the engine's processes computed: what else runs on the machine hardly changes them."""
    reread: float
    """Tokens that were read once more."""
    spanning: float
    """Share of the responses that are of several versions."""


class Ran(NamedTuple):
    """What one run came to: means over its steps."""

    seconds: float
    """Of a step."""
    lag: float
    """Of a token, in versions behind the weights that learnt from it."""
    oldest: float
    """The lag of the oldest token of a step."""
    spanning: float
    reread: float
    """Tokens that were read once more, for each that was read or written otherwise."""


def reread(rollouts: Batch) -> int:
    """Tokens read once more: wherever a newer version goes on, the prompt and all that stood behind it."""
    prompts, responses = rollouts.ragged(PROMPT_TOKENS).rows(), rollouts.ragged(TOKEN_VERSIONS).rows()
    return sum(
        len(prompt) + place
        for prompt, versions in zip(prompts, responses, strict=True)
        for place in (1 + (versions[1:] != versions[:-1]).nonzero().flatten()).tolist()
    )


def whole(rollouts: Batch) -> int:
    """Tokens of prompts and responses."""
    return len(rollouts.ragged(PROMPT_TOKENS).values) + len(rollouts.ragged(TOKENS).values)


def spanning(rollouts: Batch) -> float:
    return statistics.mean(float(len(set(row.tolist())) > 1) for row in rollouts.ragged(TOKEN_VERSIONS).rows())


@contextmanager
def serving(folder: Path, tokens: int, rows: int) -> Iterator[tuple[VllmEngine, WeightSync]]:
    """A group of vLLM in flight, and a one-rank actor's way to it; no token ends a response."""
    settings = ActorSettings(precision=Precision(compute="fp32"))
    groups.cut(settings)
    actor = MegatronActor(settings, Origin(folder=folder))
    model = ServedModel(folder=folder, shape=actor.model.architecture.shape, context=CONTEXT, dtype=torch.float32)
    nothing_ends = Vocabulary(decode=lambda tokens: "", end=())  # noqa: ARG005  # nothing is read here
    engine = Vllm(in_flight=True, rows=rows, **SERVED).open(
        model, nothing_ends, SamplingSettings(max_tokens=tokens), folder.parent / "logs"
    )
    try:
        engine.start()
        yield engine, in_process_sync(actor, engine)
    finally:
        engine.close()


def computed(engine: VllmEngine) -> float:
    """Processor seconds of the engine's processes so far."""
    roots = [psutil.Process(berth.group.pid) for berth in engine.fleet.berths]
    times = [one.cpu_times() for root in roots for one in (root, *root.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def wave(engine: VllmEngine, sync: WeightSync, asked: Batch, updates: int) -> Wave:
    """Publishes whenever as many tokens are written as cut what is asked into equal parts."""
    written, all_of_it = [0], int(asked[BUDGET].sum())
    engine.progress = lambda *told: written.append(told[2])
    before, began = computed(engine), time.perf_counter()
    wave = beside(lambda: (engine.generate(asked), time.perf_counter()), "wave")
    for update in range(1, updates + 1):
        while written[-1] * (updates + 1) < update * all_of_it and not wave.done():
            time.sleep(TICK_S)
        sync.publish(engine.version + 1)
    rollouts, ended = wave.result()
    return Wave(ended - began, computed(engine) - before, reread(rollouts), spanning(rollouts))


def waves(folder: Path, sizes: Sizes) -> list[str]:
    """The table of waves; the process has joined as the only rank."""
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, VOCABULARY, (sizes.rows, PROMPT), generator=draw).tolist()
    asked = Batch.of({PROMPT_TOKENS: prompts, SEED: list(range(sizes.rows)), BUDGET: [sizes.tokens] * sizes.rows})
    told: dict[int, list[Wave]] = {updates: [] for updates in UPDATES}
    with serving(folder, sizes.tokens, sizes.rows) as (engine, sync):
        sync.publish(0)
        wave(engine, sync, asked, 1)  # warms up
        for turn in range(sizes.waves):
            for updates in UPDATES if turn % 2 == 0 else reversed(UPDATES):
                told[updates].append(wave(engine, sync, asked, updates))
    tokens = sizes.rows * (PROMPT + sizes.tokens)
    lines = [
        f"a wave of {sizes.rows} responses of {sizes.tokens} tokens, {sizes.waves} of each",
        f"{'weights':<20}{'seconds':>10}{'of none':>22}{'processor':>11}{'of none':>22}"
        f"{'read again':>12}{'of all':>8}{'spanning':>10}",
    ]
    for updates, each in told.items():
        middle = Wave(*(statistics.median(values) for values in zip(*each, strict=True)))
        seconds = ratios([one.seconds for one in each], [one.seconds for one in told[0]])
        processor = ratios([one.processor for one in each], [one.processor for one in told[0]])
        lines.append(
            f"{updates:<20}{middle.seconds:>10.2f}{seconds:>22}{middle.processor:>11.2f}{processor:>22}"
            f"{middle.reread:>12,.0f}{middle.reread / tokens:>8.2f}{middle.spanning:>10.2f}"
        )
    return lines


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The median of the rounds' ratios, the least and the most."""
    each = [one / other for one, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def served(in_flight: bool) -> str:
    told = ", ".join(f"{key}: {value}" for key, value in SERVED.items())
    return f"rollout={{vllm: {{{told}, in_flight: {str(in_flight).lower()}}}}}"


def ran(config: Path, ahead: int, in_flight: bool, steps: int) -> Ran:
    """One run of the command, from its beginning."""
    with tempfile.TemporaryDirectory() as folder:
        points = train((str(config), served(in_flight)), ahead, steps, Path(folder))
        batches = [
            Batch.read_parquet(Path(folder) / "run" / "rollouts" / f"step_{point['step']:06.0f}.parquet")
            for point in points
        ]
    # Batch s of a run that counts its steps from one is learnt from by version s - 1.
    lags = [
        point["step"] - 1 - batch.ragged(TOKEN_VERSIONS).values for point, batch in zip(points, batches, strict=True)
    ]
    return Ran(
        seconds=row(points)["step"],
        lag=float(torch.cat(lags).double().mean()),
        oldest=statistics.mean(float(lag_T.max()) for lag_T in lags),
        spanning=statistics.mean(map(spanning, batches)),
        reread=sum(map(reread, batches)) / sum(map(whole, batches)),
    )


def write_task(folder: Path, sizes: Sizes) -> Path:
    """A configuration whose responses end by chance, after a few tokens or a few hundred."""
    write_prompts(folder / "train.parquet", Arithmetic().prompts(512, seed=0))
    config = folder / "task.yaml"
    told = {
        "extends": "base/toy.yaml",
        "model": {"folder": str(folder / "model")},
        "data": {"train": [str(folder / "train.parquet")], "evaluate": []},
        "sampler": {"uniform": {"prompts": max(1, sizes.rows // 8), "samples": min(8, sizes.rows)}},
        "sampling": {"max_tokens": sizes.tokens},
        "objective": {"clipped": {"low": 0.2, "high": 0.2, "truncate": 2.0}},
    }
    config.write_text(yaml.safe_dump(told))
    return config


def runs(config: Path, sizes: Sizes) -> list[str]:
    """The table of runs."""
    told: dict[str, list[Ran]] = {name: [] for name in WAYS}
    for turn in range(sizes.rounds):
        for name, way in WAYS.items() if turn % 2 == 0 else reversed(WAYS.items()):
            told[name].append(ran(config, **way, steps=sizes.steps))
            print(name, *(f"{value:.2f}" for value in told[name][-1]), file=sys.stderr, flush=True)
    first = [one.seconds for one in told["in turn"]]
    lines = [
        f"runs of {sizes.steps} steps after {WARM}, {sizes.rows} responses of at most {sizes.tokens} tokens each, "
        f"{sizes.rounds} of each",
        f"{'':<20}{'seconds':>10}{'of in turn':>22}{'lag':>8}{'oldest':>8}{'spanning':>10}{'read again':>12}",
    ]
    for name, each in told.items():
        middle = Ran(*(statistics.median(values) for values in zip(*each, strict=True)))
        lines.append(
            f"{name:<20}{middle.seconds:>10.2f}{ratios([one.seconds for one in each], first):>22}{middle.lag:>8.2f}"
            f"{middle.oldest:>8.2f}{middle.spanning:>10.2f}{middle.reread:>12.2f}"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 64), ("tokens", 192), ("waves", 9), ("steps", 10), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    sizes = Sizes(**vars(parser.parse_args(arguments)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_tiny_model(folder / "model", seed=0)
        if sizes.waves:
            groups.join_alone()
            print(*waves(folder / "model", sizes), "", sep="\n", flush=True)
            groups.leave()
        if sizes.rounds:
            print(*runs(write_task(folder, sizes), sizes), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
