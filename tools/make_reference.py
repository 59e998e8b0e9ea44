"""Writes docs/reference.md: every key of a configuration, from the dataclasses that receive them.

python tools/make_reference.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_rl.spec.describe import describe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference.md"
HEAD = """# Reference

Made by `tools/make_reference.py`; the same text as `megatron-rl train --help`. A key is written
`name = default (type) meaning`. A choice is written with its keys below its name, as in
`sampler: {uniform: {prompts: 32}}`, a chain as a list of names.
"""


def page() -> str:
    """The page: one heading a section, its keys as they are printed on a terminal."""
    parts = [HEAD]
    for block in describe().strip().split("\n\n"):
        title, *keys = block.splitlines()
        name, _, meaning = title.partition(": ")
        parts.append(f"## {name}\n\n{meaning}\n\n```text\n" + "\n".join(keys) + "\n```\n")
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the page is what would be written")
    if parser.parse_args().check:
        if PAGE.read_text(encoding="utf-8") != page():
            print("docs/reference.md is not what tools/make_reference.py writes; run it.", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
