"""Qwen2 and Qwen2.5: biases on query, key and value, none elsewhere."""

from megatron_rl.actor.architecture import Architecture, HfConfig, dense, refuse


def describe(config: HfConfig) -> Architecture:
    """The architecture; attention is full, so a config that slides a window is refused."""
    refuse(config, "use_sliding_window", (False,))
    return dense(config, qkv_bias=True)
