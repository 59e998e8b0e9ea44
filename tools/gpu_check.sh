#!/usr/bin/env bash
# Everything that needs a GPU, in one call: versions, the tests under tests/gpu, the benchmark, and one dated report.
#
#   tools/gpu_check.sh [FOLDER] [bench_gpu.py's choices]      e.g. tools/gpu_check.sh "" --model 0.6b
#
# The report goes to FOLDER, else to $OUT, else to tests/gpu/results. PYTHON (default python3) is used as it is: GPU
# machines bring their own torch and Transformer Engine. Exits 1 when a test or the benchmark failed, 2 without a GPU or torch.
set -uo pipefail
cd "$(dirname "$0")/.."
[[ "${1:-}" =~ ^(-h|--help)$ ]] && { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' tools/gpu_check.sh; exit 0; }
python="${PYTHON:-python3}"
folder="${1:-${OUT:-tests/gpu/results}}"
[ "$#" -gt 0 ] && shift
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

if [ ! -d "$(dirname "$folder")" ]; then
    echo "$(dirname "$folder") is no folder to make $(basename "$folder") in" >&2
    exit 2
fi
if ! "$python" -c 'import torch' 2>/dev/null; then
    echo "$python has no torch; name one that has: PYTHON=.venv/bin/python tools/gpu_check.sh" >&2
    exit 2
fi
"$python" tools/gpu_report.py || exit 1
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "this machine has no CUDA device; the tests that need none are \`make test\`" >&2
    exit 2
fi

failed=0
# Only files with such tests are collected: the others may import what a GPU machine does not have.
mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests | sort)
"$python" -m pytest -ra -m gpu "${files[@]}" --junitxml "$scratch/tests.xml" || failed=1
"$python" tools/bench_gpu.py --json "$scratch/bench.json" "$@" || failed=1
"$python" tools/gpu_report.py "$folder" --tests "$scratch/tests.xml" --bench "$scratch/bench.json" || failed=1
exit "$failed"
