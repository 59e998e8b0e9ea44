"""Reinforcement learning of reasoning models on Megatron-Core actors and vLLM rollouts."""

__version__ = "0.1.0"
