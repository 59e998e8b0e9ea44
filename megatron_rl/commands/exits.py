"""Exit codes, the same for every command."""

from typing import Final

DONE: Final = 0
FAILED: Final = 1
"""What was asked for broke down; a sentence says how."""
WRONG: Final = 2
"""The command line or the configuration is wrong; nothing was started."""
STOPPED: Final = 75
"""The run was stopped by a signal or for lack of time, and is saved: the same command goes on with it."""
INTERRUPTED: Final = 130
