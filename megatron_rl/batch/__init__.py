"""Floor 0: the immutable Arrow table of rollouts, its ragged columns, its data dictionary and what outlives a step."""
