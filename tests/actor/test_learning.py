"""One optimizer step among many: a supervised warm start beside plain PyTorch, and what a step reports."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_rl.actor.learning import priced_nothing, share
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.recipe import LearningRate
from megatron_rl.actor.sequences import Sequences
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import TOKENS
from megatron_rl.objectives.clipped import Clipped
from megatron_rl.objectives.likelihood import Likelihood
from megatron_rl.objectives.rebel import Rebel
from tests import ranks
from tests.actor.training import EVERYTHING, actor_of, train
from tests.fakes.arithmetic import demonstrations
from tests.fakes.rollouts import rollouts
from tests.fakes.tiny_models import tiny_folder
from tools.bench_actor import padded, write_model
from tools.plain_decoder import PlainDecoder, Sizes


def warm_start(folder: Path, steps: int, rows: int, peak: float) -> dict[str, list[float]]:
    """Losses of the actor and of plain PyTorch, step by step, on the same demonstrations."""
    sizes = Sizes()
    weights = write_model(folder, sizes)
    rate = LearningRate(peak=peak, schedule="linear", warmup=30, steps=steps, floor=0.05)
    chosen = {"learning_rate": rate, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    actor, plain = actor_of(folder, tokens=4096, optimizer=chosen), PlainDecoder(sizes, weights)
    decays = {True: 0.1, False: 0.0}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in plain.parameters() if (p.dim() > 1) == wide], "weight_decay": decay}
            for wide, decay in decays.items()
        ],
        betas=(0.9, 0.95),
    )
    losses: dict[str, list[float]] = {"actor": [], "plain": []}
    for step in range(steps):
        # The last fifth mostly guesses, so that a loss is left which no amount of training removes.
        mixed = {"guessing": 0.75, "slip": 0.1} if step >= 0.8 * steps else {}
        batch = demonstrations(rows, seed=step, **mixed)
        losses["actor"].append(actor.update(batch, Likelihood()).metrics["loss"])
        loss = plain.loss(*padded(batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate.at(step)
        optimizer.step()
        losses["plain"].append(float(loss.detach()))
    return losses


def within_a_percent(losses: dict[str, list[float]], last: int) -> None:
    actor, plain = (float(np.mean(losses[name][-last:])) for name in ("actor", "plain"))
    assert abs(actor - plain) <= 0.01 * plain
    assert plain < losses["plain"][0] / 2


def test_a_warm_start_reaches_the_loss_of_plain_pytorch(tmp_path):
    (losses,) = ranks.run(warm_start, world=1, folder=tmp_path, steps=80, rows=16, peak=4e-3)
    assert losses["actor"][0] == pytest.approx(losses["plain"][0], rel=1e-5)
    within_a_percent(losses, last=10)


@pytest.mark.slow
def test_a_long_warm_start_reaches_the_loss_of_plain_pytorch(tmp_path):
    # At 4e-3 training is chaotic: after 600 steps two plain runs whose first weights differ by 1e-7 are 50% apart.
    (losses,) = ranks.run(warm_start, world=1, timeout_s=1800.0, folder=tmp_path, steps=800, rows=32, peak=1e-3)
    within_a_percent(losses, last=50)


def silent_rows(folder: Path) -> tuple[list[list[int]], float]:
    actor = actor_of(folder)
    batch = rollouts(groups=2, samples=2, lengths=[3, 0, 0, 2])
    sequences = Sequences(batch, Clipped().reads[:1])
    planned, packed = share(sequences, torch.arange(4), actor.limits)
    return [part.rows.tolist() for part in packed], planned.processed


def test_rows_without_a_response_are_not_computed(tmp_path):
    ((rows, _),) = ranks.run(silent_rows, world=1, folder=tiny_folder(tmp_path, "llama"))
    assert sorted(row for part in rows for row in part) == [0, 3]


def nothing_to_learn(folder: Path, **cut: Any) -> dict[str, float]:
    batch = rollouts(groups=2, samples=2, lengths=[0, 0, 0, 0])
    update = actor_of(folder, **cut).update(batch, EVERYTHING)
    return {**update.metrics, "steps": update.steps}


@pytest.mark.parametrize("cut", [{}, {"dp": 2, "tp": 2}, {"pp": 2, "vpp": 2}], ids=str)
def test_a_batch_of_failed_rollouts_moves_nothing_and_breaks_nothing(tmp_path, cut):
    folder = tiny_folder(tmp_path, "qwen3", num_hidden_layers=4)
    world = cut.get("tp", 1) * cut.get("pp", 1) * cut.get("dp", 1)
    for answer in ranks.run(nothing_to_learn, world=world, folder=folder, **cut):
        assert answer["grad_norm"] == answer["loss"] == answer["tokens"] == 0.0
        assert answer["steps"] == 0


def filled_up(folder: Path, batch: Batch) -> float:
    return actor_of(folder, cp=2, tokens=10_000).update(batch, Clipped()).metrics["packing"]


def test_what_fills_rows_up_for_context_ranks_is_told_as_computed(tmp_path):
    batch = rollouts(groups=6)
    lengths = Sequences(batch).lengths
    for packing in ranks.run(filled_up, world=2, folder=tiny_folder(tmp_path, "qwen3"), batch=batch):
        assert packing == sum(-(-length // 4) * 4 for length in lengths) / sum(lengths)


def test_the_names_of_metrics_are_known_without_a_token():
    assert set(priced_nothing(EVERYTHING).metrics) == {"clip_fraction", "kl_old", "kl_reference", "correction"}
    assert set(priced_nothing(Likelihood()).metrics) == {"nll"}


def reported(folder: Path, batch: Batch) -> dict[str, float]:
    return dict(actor_of(folder, dp=2).update(batch, Clipped(entropy=0.01)).metrics)


def test_a_report_holds_what_a_reader_of_a_run_asks(tmp_path):
    batch = rollouts(groups=6)
    for metrics in ranks.run(reported, world=2, folder=tiny_folder(tmp_path, "qwen3"), batch=batch):
        asked = {"loss", "grad_norm", "lr", "clip_fraction", "kl_old", "entropy", "tokens", "packing", "imbalance"}
        assert asked <= metrics.keys()
        assert 0 < metrics["tokens"] <= len(batch.ragged(TOKENS).values)
        assert metrics["packing"] == 1.0
        assert 0 < metrics["entropy"] < np.log(101)


@pytest.mark.parametrize(
    "cut",
    [{"tokens": 60}, {"dp": 2, "tokens": 60}, {"tp": 2, "pp": 2, "tokens": 60}, {"cp": 2, "tokens": 80}],
    ids=str,
)
def test_a_loss_over_pairs_is_the_same_however_the_batch_is_split(tmp_path, cut):
    folder, batches = tiny_folder(tmp_path / "model", "qwen3"), [rollouts(seed=seed) for seed in range(2)]
    one, other = (
        ranks.run(
            train,
            world=Parallel(**{name: size for name, size in each.items() if name != "tokens"}).world,
            folder=folder,
            export=tmp_path / str(number),
            batches=batches,
            objective=Rebel(),
            **each,
        )[0]["metrics"]
        for number, each in enumerate(({"tokens": 10_000}, cut))
    )
    for alone, split in zip(one, other, strict=True):
        for name in ("loss", "grad_norm", "residual_square"):
            assert split[name] == pytest.approx(alone[name], rel=1e-4), name
