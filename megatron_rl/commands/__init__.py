"""What `megatron-rl` can do: one file a command, with `add_arguments(parser)` and `run(arguments)`, its exit code.

Nothing heavy is imported before a command has looked at its arguments, so that a mistake is answered at once.
"""
