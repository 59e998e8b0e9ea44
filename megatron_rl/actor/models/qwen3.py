"""Qwen3, dense: queries and keys are normalised per head, and the head size is free of the hidden size."""

from megatron_rl.actor.architecture import Architecture, HfConfig, dense, refuse


def describe(config: HfConfig) -> Architecture:
    """The architecture; the family's bias and window switches are refused when on."""
    refuse(config, "use_sliding_window", (False,))
    refuse(config, "attention_bias", (False,))
    return dense({"head_dim": 128, **config}, qk_norm=True)
