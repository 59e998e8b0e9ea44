"""Qwen3 with experts: Qwen3's attention, and in most layers a router that picks a few of many small MLPs per token."""

from dataclasses import replace

from megatron_rl.actor.architecture import Architecture, HfConfig, Routing, dense, refuse, whole


def describe(config: HfConfig) -> Architecture:
    """The architecture; window and bias switches are refused when on. The auxiliary loss of pretraining is left out."""
    refuse(config, "use_sliding_window", {False})
    refuse(config, "attention_bias", {False})
    normalise = "norm_topk_prob" in config and config["norm_topk_prob"] is True
    routing = Routing(chosen=whole(config, "num_experts_per_tok"), normalise=normalise)
    return replace(dense({"head_dim": 128, **config}, qk_norm=True), routing=routing)
