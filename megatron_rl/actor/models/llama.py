"""Llama 2 and 3: no biases, RoPE stretched by the `llama3` rule from 3.1 on."""

from megatron_rl.actor.architecture import Architecture, HfConfig, dense, refuse


def describe(config: HfConfig) -> Architecture:
    """The architecture; the family's bias switches are refused when on."""
    refuse(config, "attention_bias", (False,))
    refuse(config, "mlp_bias", (False,))
    return dense(config)
