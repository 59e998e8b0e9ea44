"""Says what went wrong first in a run, and packs what a bug report needs: no weights, no prompts, no secrets.

megatron-rl bundle runs/jspo                    # jspo_bundle.tar.gz
megatron-rl bundle runs/jspo --log runs/jobs/4711/driver.log
megatron-rl bundle runs/jspo --rollouts         # with the last step's prompts and responses
"""

from __future__ import annotations

import argparse
import getpass
import os
from pathlib import Path

from megatron_rl.commands.configuration import checked
from megatron_rl.commands.exits import DONE
from megatron_rl.diagnosis import check_run
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.spec.schema import SpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--rollouts", action="store_true", help="pack the last step's prompts and responses too")
    parser.add_argument("--log", type=Path, nargs="+", default=[], metavar="FILE", help="further logs to pack")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the archive; RUN_bundle.tar.gz here if not given")
    parser.epilog = str(__doc__).partition("\n\n")[2]


def run(arguments: argparse.Namespace) -> int:
    check_run(arguments.folder)
    from megatron_rl import bundle
    from megatron_rl.redaction import Redaction

    asked = bundle.Asked(
        run=arguments.folder,
        environment=os.environ,
        plan=_plan(arguments.folder / "spec.yaml"),
        logs=tuple(arguments.log),
        rollouts=arguments.rollouts,
    )
    members = bundle.gather(asked, Redaction.of(os.environ, people=[_user()]))
    target = arguments.out or Path(f"{arguments.folder.resolve().name}_bundle.tar.gz")
    bundle.write(members, target)
    print(members["what_happened.txt"].decode(), end="")
    print(f"{target} holds:")
    for name, content in members.items():
        print(f"  {len(content):>9} bytes  {name}")
    print(
        "Secrets, names of users and their homes are taken out; logs are programs' words, so look before you send it."
    )
    return DONE


def _plan(config: Path) -> str:
    """What a dry run says, or why it says nothing: a broken configuration may be what is reported."""
    from megatron_rl.preview import preview

    try:
        return preview(checked(config, []))
    except (SpecError, LayoutError) as error:
        return f"{error}\n"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user that it has no name for
        return ""
