#!/usr/bin/env bash
# Everything that needs a GPU, in one call: versions, the tests under tests/gpu, then its benches (tests/gpu/bench_*.py).
# What it prints is kept under tests/gpu/results/, or in the folder given as the first argument.
# Uses PYTHON (default python3) as it is: GPU machines bring their own torch and Transformer Engine.
set -uo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
results="${1:-tests/gpu/results}"
mkdir -p "$results"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

"$python" - <<'PY' | tee "$results/versions.txt" || exit 2
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

if not torch.cuda.is_available():
    sys.exit("this machine has no CUDA device; the rest of the tests are `make test`")
print("device", torch.cuda.get_device_name(), "capability", torch.cuda.get_device_capability())
print("python", platform.python_version(), "CUDA", torch.version.cuda)
for package in ("torch", "megatron-core", "transformer-engine", "apex", "vllm", "transformers", "pyarrow", "pydantic"):
    try:
        print(package, version(package))
    except PackageNotFoundError:
        print(package, "absent")
PY
[ "${PIPESTATUS[0]}" -eq 0 ] || exit 2

failed=0
"$python" -m pytest -m gpu -ra tests/gpu 2>&1 | tee "$results/tests.txt"
[ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
for bench in tests/gpu/bench_*.py; do
    [ -e "$bench" ] || continue
    echo "== $bench"
    "$python" "$bench" 2>&1 | tee "$results/$(basename "$bench" .py).txt"
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
done
exit "$failed"
