"""The actor in FP8: each recipe in its band, really in use, and refused with a reason where the GPU lacks it."""

from __future__ import annotations

import pytest
import torch

from megatron_rl.actor.cpu import device
from megatron_rl.actor.fused import has_transformer_engine
from megatron_rl.actor.precision import Precision, check_hardware
from megatron_rl.objectives.likelihood import Likelihood
from megatron_rl.spec.schema import SpecError
from tests.gpu.wide import actor_of, flat, gradients_of, relative

pytestmark = pytest.mark.gpu

RECIPES = ("tensorwise", "delayed", "blockwise", "mxfp8")
MEAN_BAND = 0.35
"""Of log-probabilities. Rounding this model's matrices to FP8 on a CPU moves them by 0.16 to 0.19 in the mean: every
weight is random, so its layers do more to the residual stream than those of a trained model."""
ALIGNMENT = 0.92
"""Cosine between gradients; the same rounding leaves 0.96 to 0.98."""
LEAST = 0.04
"""Mean error below which FP8 cannot have been in use: BF16 alone is off by 0.015."""


def possible(recipe: str) -> Precision:
    """The precision, where this machine has it."""
    precision = Precision(compute="fp8", recipe=recipe)
    try:
        check_hardware(precision)
    except SpecError as error:
        pytest.skip(str(error))
    return precision


def settled(actor, batch):
    """Scores once delayed scaling has seen the maxima it scales by."""
    actor.score(batch)
    return actor.score(batch).values.to(device())


@pytest.mark.parametrize("recipe", RECIPES)
def test_log_probabilities_in_fp8_stay_in_their_band(alone, qwen3, measured, recipe):
    difference_R = (settled(actor_of(qwen3.folder, possible(recipe)), qwen3.batch) - qwen3.logprob_R).abs()
    measured(mean=difference_R.mean(), max=difference_R.max(), mean_band=MEAN_BAND, least=LEAST)
    assert LEAST <= difference_R.mean() <= MEAN_BAND


@pytest.mark.parametrize("recipe", RECIPES)
def test_gradients_in_fp8_point_where_those_in_float32_do(alone, qwen3, measured, recipe):
    actor = actor_of(qwen3.folder, possible(recipe))
    gradients_of(actor, qwen3.batch)
    found, expected = flat(gradients_of(actor, qwen3.batch)), flat(qwen3.gradients)
    cosine = float(torch.cosine_similarity(found.double(), expected.double(), dim=0))
    measured(cosine=cosine, relative=relative(found, expected), band=ALIGNMENT)
    assert cosine >= ALIGNMENT


@pytest.mark.parametrize("recipe", RECIPES)
def test_updates_in_fp8_lower_the_loss(alone, qwen3, recipe):
    actor = actor_of(qwen3.folder, possible(recipe), rate=1e-3)
    losses = [actor.update(qwen3.batch, Likelihood()).metrics["nll"] for _ in range(6)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise", "mxfp8"])
def test_edge_layers_in_bf16_bring_the_error_back_to_that_of_bf16(alone, qwen3, measured, recipe):
    """Of a model of two layers, both are edges."""
    precision = Precision(compute="fp8", recipe=possible(recipe).recipe, edge_layers_bf16=1)
    mean = (actor_of(qwen3.folder, precision).score(qwen3.batch).values.to(device()) - qwen3.logprob_R).abs().mean()
    measured(mean=mean)
    assert mean < LEAST


def test_micro_batches_in_fp8_are_padded_to_what_the_kernels_take(alone, qwen3):
    actor = actor_of(qwen3.folder, possible("tensorwise"))
    assert actor.model.token_multiple == 16
    update = actor.update(qwen3.batch, Likelihood())
    assert update.metrics["packing"] <= 1.1


def test_scales_of_32_are_refused_before_blackwell():
    if torch.cuda.get_device_capability() >= (10, 0):
        pytest.skip("this GPU has the recipe mxfp8")
    with pytest.raises(SpecError, match=r"mxfp8|transformer_engine"):
        check_hardware(Precision(compute="fp8", recipe="mxfp8"))


def test_fp8_without_its_package_is_refused():
    if has_transformer_engine():
        pytest.skip("Transformer Engine is installed")
    with pytest.raises(SpecError, match="needs the package transformer_engine"):
        check_hardware(Precision(compute="fp8"))
