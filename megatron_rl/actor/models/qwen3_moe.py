"""Qwen3 with experts: Qwen3's attention, and in most layers a router that picks a few of many small MLPs per token."""

from dataclasses import replace

from megatron_rl.actor.architecture import Architecture, HfConfig, Routing, dense, refuse, whole
from megatron_rl.spec.schema import SpecError


def describe(config: HfConfig) -> Architecture:
    """The architecture; window and bias switches are refused when on. The auxiliary loss of pretraining is left out."""
    refuse(config, "use_sliding_window", (False,))
    refuse(config, "attention_bias", (False,))
    refuse(config, "norm_topk_prob", (True, False))
    normalise = "norm_topk_prob" in config and config["norm_topk_prob"] is True
    chosen, plain = whole(config, "num_experts_per_tok"), dense({"head_dim": 128, **config}, qk_norm=True)
    if chosen > plain.shape.experts:
        raise SpecError(f"config.json has num_experts_per_tok = {chosen}, but only {plain.shape.experts} experts.")
    return replace(plain, routing=Routing(chosen=chosen, normalise=normalise))
