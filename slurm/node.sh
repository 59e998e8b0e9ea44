#!/usr/bin/env bash
# What one task of a job does on its node: `join ADDRESS` makes it part of the Ray cluster; `drive ADDRESS STOP COMMAND...`
# runs the command, and tells it to save and stop once the file STOP is there.
set -euo pipefail
cd "$(dirname "$0")/.."
source slurm/node_setup.sh

role=$1 address=$2
shift 2

join() {
    # Ports are the kernel's choice, so that jobs that share a node never collide.
    local shared=(--block --disable-usage-stats --min-worker-port 0 --max-worker-port 0 --num-cpus "${SLURM_CPUS_ON_NODE:-1}")
    shared+=(--node-ip-address "$(scontrol show node "$SLURMD_NODENAME" | tr ' ' '\n' | sed -n 's/^NodeAddr=//p')")
    [ -z "${SLURM_GPUS_ON_NODE:-}" ] || shared+=(--num-gpus "$SLURM_GPUS_ON_NODE")
    if [ "$SLURM_NODEID" -eq 0 ]; then
        exec ray start --head --port "${address##*:}" --dashboard-host 127.0.0.1 "${shared[@]}"
    fi
    wait_for "the first node at $address" reached
    exec ray start --address "$address" "${shared[@]}"
}

reached() { (exec 3<>"/dev/tcp/${address%:*}/${address##*:}") 2>/dev/null; }

wait_for() { # WHAT COMMAND: tries for two minutes
    for _ in $(seq 240); do
        if "$2"; then return; fi
        sleep 0.5
    done
    echo "$(hostname) waited 120 s for $1 in vain; can the nodes reach one another?" >&2
    exit 1
}

drive() {
    local stop=$1 driver code=0
    shift
    if [ "$address" != alone ]; then
        wait_for "the first node at $address" reached
    fi
    "$@" &
    driver=$!
    trap 'touch "$stop"' USR1 TERM
    (
        trap '' USR1 TERM
        until [ -e "$stop" ] || ! kill -0 "$driver" 2>/dev/null; do sleep 0.5; done
        kill -USR1 "$driver" 2>/dev/null
    ) &
    while :; do # a signal ends `wait`, not the driver
        wait "$driver" && code=0 || code=$?
        kill -0 "$driver" 2>/dev/null || exit "$code"
    done
}

"$role" "$@"
