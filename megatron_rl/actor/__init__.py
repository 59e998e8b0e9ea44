"""Megatron-Core lives here and nowhere else: model, schedule, optimizer, precision, weights."""
