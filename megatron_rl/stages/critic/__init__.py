"""PPO: `value` before `generalised_advantage`, `update` after it."""
