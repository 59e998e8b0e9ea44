#!/usr/bin/env bash
# The whole gate, cheapest first: format, lint, types, tests. `make check` runs it inside the virtual environment.
#
#   tools/check.sh [pytest's choices]      e.g. tools/check.sh -x
set -euo pipefail
cd "$(dirname "$0")/.."
[[ "${1:-}" =~ ^(-h|--help)$ ]] && { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' tools/check.sh; exit 0; }
ruff format --check .
ruff check .
mypy
python -m pytest "$@"
