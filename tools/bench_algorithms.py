"""Puts a method's claim to the test against its baselines, on one small task, and writes a page about what came out.

    python tools/bench_algorithms.py jspo|spec_rl|speed|pspo|a_star_po|combinations [--seeds 3] [--work runs/claims]
        [--results docs/results] [--quick]

Every run is a shipped configuration on the real actor and the embedded engine, in this process; what each spends is
counted alike. Finished runs are kept in the work folder, so a stopped command goes on where it was. `--quick` makes
every number tiny: it shows that the command works, and nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs as a script, from anywhere

import torch

from tools.claims import a_star_po, combinations, jspo, pspo, spec_rl, speed

CLAIMS = {
    "jspo": jspo.page,
    "spec_rl": spec_rl.page,
    "speed": speed.page,
    "pspo": pspo.page,
    "a_star_po": a_star_po.page,
    "combinations": combinations.page,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claim", choices=sorted(CLAIMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/claims"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    page = CLAIMS[options.claim](options.work, range(options.seeds), options.quick)
    page.write(options.results / options.claim)
    print((options.results / options.claim / "README.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
