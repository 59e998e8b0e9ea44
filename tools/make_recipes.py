"""Writes what `megatron-rl plan` prints into the pages of the recipes, and their table into docs/recipes.md.

python tools/make_recipes.py [--check]

A page under examples/ names a plan by its command, indented by four spaces; the text fenced after it is what it prints.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from megatron_rl.cli import main as megatron_rl
from megatron_rl.commands.exits import DONE

ROOT: Final = Path(__file__).resolve().parents[1]
TABLE: Final = ROOT / "docs" / "recipes.md"
PLAN: Final = re.compile(r"(?m)^    megatron-rl (plan examples/.+)\n\n```text\n(?:.*\n)*?```\n")
ROWS: Final = re.compile(r"(?s)(<!-- recipes -->\n).*(<!-- /recipes -->)")
HEAD: Final = "| recipe | machines | actor | engines | learning | cache | step |\n|---|---|---|---|---|---|---|\n"


class Recipe(NamedTuple):
    """One plan of a page: where it stands, and what was printed."""

    page: Path
    command: str
    printed: str

    @property
    def config(self) -> str:
        return self.command.split()[1]

    @property
    def row(self) -> str:
        """A line of the table, read from what was printed."""
        lines = self.printed.splitlines()
        chosen = next(line for line in lines if line.startswith("1  "))
        actor, engines, _, step, learning, cache = re.split(r"\s{2,}", chosen[3:].strip())
        machines = re.search(r"parameters on (.+?),", lines[0])
        assert machines is not None, "the first line of a plan names the machines"
        return f"| `{self.config}` | {machines[1]} | {actor} | {engines} | {learning} | {cache} | {step} |"


def pages() -> list[Path]:
    return sorted(ROOT.glob("examples/*/README.md"))


def plan(command: str) -> str:
    """What the command prints."""
    printed = io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(printed):
        code = megatron_rl(shlex.split(command))
    if code != DONE:
        raise SystemExit(f"`megatron-rl {command}` ended with {code}.")
    return printed.getvalue()


def recipes(page: Path) -> Iterator[Recipe]:
    for found in PLAN.finditer(page.read_text(encoding="utf-8")):
        yield Recipe(page, found[1], plan(found[1]))


def written() -> dict[Path, str]:
    """The pages and the table as they should be."""
    texts, rows = {}, []
    for page in pages():
        planned = {one.command: one for one in recipes(page)}
        rows += [one.row for one in planned.values()]
        texts[page] = PLAN.sub(partial(_block, planned), page.read_text(encoding="utf-8"))
    table = TABLE.read_text(encoding="utf-8")
    texts[TABLE] = ROWS.sub(lambda found: found[1] + HEAD + "\n".join(rows) + "\n" + found[2], table)
    return texts


def _block(planned: Mapping[str, Recipe], found: re.Match[str]) -> str:
    return f"    megatron-rl {found[1]}\n\n```text\n{planned[found[1]].printed}```\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say which pages are not what would be written")
    check = parser.parse_args().check
    stale = {page: text for page, text in written().items() if page.read_text(encoding="utf-8") != text}
    for page, text in stale.items():
        if check:
            print(f"{page.relative_to(ROOT)} is not what tools/make_recipes.py writes; run it.", file=sys.stderr)
        else:
            page.write_text(text, encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
