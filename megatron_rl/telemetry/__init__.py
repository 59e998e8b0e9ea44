"""Floor 3, machine: what a run shows while it runs and leaves behind. It looks, and never changes what it looks at."""
