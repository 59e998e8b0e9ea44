"""What every objective promises. A new file under objectives/ is tested here before it has a test of its own."""

import importlib
import math
import pkgutil

import pytest
import torch

import megatron_rl.objectives
from megatron_rl.batch.columns import DICTIONARY, GROUP
from megatron_rl.objectives.clipped import Clipped
from megatron_rl.ports import Objective
from tests.fakes.priced_tokens import counts_of, part, random_tokens, slope


def all_objectives() -> list[Objective]:
    names = [module.name for module in pkgutil.iter_modules(megatron_rl.objectives.__path__)]
    return [objective_of(name)() for name in names]


def objective_of(name: str) -> type:
    expected = "".join(word.capitalize() for word in name.split("_"))
    return getattr(importlib.import_module(f"megatron_rl.objectives.{name}"), expected)


FULL = Clipped(kl=0.1, kl_estimator="k1+", entropy=0.01, truncate=3.0, truncate_level="icepop")
OBJECTIVES = pytest.mark.parametrize("objective", [*all_objectives(), FULL], ids=lambda one: type(one).__name__)


@OBJECTIVES
def test_it_is_a_frozen_dataclass_that_reads_declared_columns(objective):
    assert objective.__dataclass_params__.frozen
    assert objective.__doc__
    assert all(DICTIONARY.get(column.name, column) == column for column in objective.reads)


@OBJECTIVES
@pytest.mark.parametrize("seed", range(5))
def test_shares_of_any_split_add_up_in_loss_gradient_and_metrics(objective, seed):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 7, (8,), generator=draw).tolist()
    tokens = random_tokens(objective, lengths, seed)
    counts = counts_of(tokens, groups=3)
    whole, gradient_T = slope(objective, tokens, counts)
    # An objective that reads the group compares its rollouts, so that a split leaves groups whole.
    size = 2 if GROUP in objective.reads else 1
    units = torch.arange(8).view(-1, size)[torch.randperm(8 // size, generator=draw)]
    cuts = torch.randint(0, len(units) + 1, (3,), generator=draw).sort().values
    shares = [objective.price(part(tokens, rows.flatten().tolist()), counts) for rows in units.tensor_split(cuts)]
    torch.testing.assert_close(sum(share.loss for share in shares).detach(), whole.loss)
    for name in whole.metrics:
        torch.testing.assert_close(sum(share.metrics[name] for share in shares), whole.metrics[name])
    (split_T,) = torch.autograd.grad(sum(share.loss for share in shares), tokens.logprobs_T)
    torch.testing.assert_close(split_T, gradient_T)


@OBJECTIVES
def test_garbage_under_the_mask_is_never_seen(objective):
    tokens = random_tokens(objective)
    counts = counts_of(tokens)
    clean, clean_T = slope(objective, tokens, counts)
    dead_T = tokens.mask_T == 0
    for column in objective.reads:
        if column.is_ragged:
            tokens.columns[column.name][dead_T] = math.nan
    with torch.no_grad():
        tokens.logprobs_T[dead_T] = -math.inf
    dirty, dirty_T = slope(objective, tokens, counts)
    assert torch.equal(clean.loss, dirty.loss)
    assert torch.equal(clean_T, dirty_T)
    assert all(torch.equal(dirty.metrics[name], value) for name, value in clean.metrics.items())


@OBJECTIVES
def test_nothing_to_price_costs_nothing_under_the_same_names(objective):
    tokens = random_tokens(objective)
    counts = counts_of(tokens)
    nothing = objective.price(part(tokens, []), counts)
    assert float(nothing.loss.detach()) == 0.0
    assert nothing.loss.requires_grad
    assert nothing.metrics.keys() == objective.price(tokens, counts).metrics.keys()
    assert all(float(value) == 0.0 for value in nothing.metrics.values())


@OBJECTIVES
def test_pricing_twice_gives_the_same_bits_and_leaves_the_tokens_alone(objective):
    tokens = random_tokens(objective)
    before = {name: values.clone() for name, values in tokens.columns.items()}
    first, second = (slope(objective, tokens, counts_of(tokens)) for _ in range(2))
    assert torch.equal(first[0].loss, second[0].loss)
    assert torch.equal(first[1], second[1])
    assert all(torch.equal(tokens.columns[name], values) for name, values in before.items())
