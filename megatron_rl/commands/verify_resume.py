"""Proves of a run of your own that stopping and resuming equals never having stopped.

megatron-rl verify-resume runs/quickstart                  # some steps after its newest checkpoint, twice, and compared
megatron-rl verify-resume runs/quickstart --steps 50       # against the run itself, where it saved 50 steps ago
megatron-rl verify-resume runs/jspo rollout=embedded       # with settings laid over the run's own
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from megatron_rl.commands.configuration import checked
from megatron_rl.commands.exits import DONE, FAILED
from megatron_rl.spec.schema import SpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run; it is read and never written")
    parser.add_argument("settings", nargs="*", default=[], metavar="key=value", help="settings laid over the run's own")
    parser.add_argument("--steps", type=int, default=4, metavar="K", help="steps to make, at least 2 (4)")
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="where to make them; else beside the run")
    parser.epilog = str(__doc__).partition("\n\n")[2]


def run(arguments: argparse.Namespace) -> int:
    path = arguments.folder / "spec.yaml"
    if not path.is_file():
        raise SpecError(f"{arguments.folder} is no folder of a run: it holds no spec.yaml.")
    if arguments.steps < 2:
        raise SpecError(f"--steps is {arguments.steps}; a stop between two steps needs at least 2.")
    spec = checked(path, arguments.settings)
    if spec.choices["rollout"].values.get("in_flight"):
        raise SpecError(
            "rollout.vllm.in_flight lets weights come wherever a response is just then, so no two runs write the same; "
            "add rollout.vllm.in_flight=false to verify everything else."
        )
    from megatron_rl.checkpoint import CheckpointError
    from megatron_rl.rehearsal import by_command, plan_rehearsal, rehearse

    above = arguments.scratch or arguments.folder.resolve().parent
    above.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".verify_{arguments.folder.resolve().name}_", dir=above))
    try:
        plan = plan_rehearsal(arguments.folder, arguments.steps)
        print(f"{plan} …", file=sys.stderr)
        found = rehearse(plan, spec, scratch, by_command(path, tuple(arguments.settings), scratch))
    except (CheckpointError, RuntimeError, OSError) as error:
        print(f"nothing was proved: {error}", file=sys.stderr)
        return FAILED
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    if found is not None:
        print(f"{plan}: not the same; first differs {found}. Both are kept in {scratch}.")
        return FAILED
    shutil.rmtree(scratch)
    print(f"{plan}: rollouts, memory, parameters and moments are the same to the bit.")
    return DONE
