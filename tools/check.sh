#!/usr/bin/env bash
# The whole gate, cheapest first: format, lint, types, tests. `make check` runs it inside the virtual environment.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff format --check .
ruff check .
mypy
python -m pytest "$@"
