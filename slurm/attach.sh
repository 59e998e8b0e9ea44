#!/usr/bin/env bash
# A shell inside a running job, on its first node or the one named:   slurm/attach.sh JOB [NODE]
set -euo pipefail
job=${1:?usage: slurm/attach.sh JOB [NODE]}
node=${2:-$(scontrol show hostnames "$(squeue --noheader --jobs "$job" --format %N)" | head -n 1)}
exec srun --jobid "$job" --overlap --nodes=1 --ntasks=1 --nodelist "$node" --pty bash -l
