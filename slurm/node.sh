#!/usr/bin/env bash
# What one task of a job does on its node: `join ADDRESS` makes it part of the Ray cluster; `drive ADDRESS STOP COMMAND...`
# runs the command, and tells it to save and stop once the file STOP is there.
set -euo pipefail
cd "$(dirname "$0")/.."
source slurm/node_setup.sh
source slurm/outlast.sh

role=$1 address=$2
shift 2

join() {
    # Ray would put ranks behind whatever else wants a processor, and remember every call of theirs.
    export RAY_worker_niceness=0 RAY_task_events_report_interval_ms=0
    # Ports are the kernel's choice, so that jobs that share a node never collide. Ranks keep logs of their own.
    local shared=(--block --disable-usage-stats --num-cpus "${SLURM_CPUS_ON_NODE:-1}" --include-log-monitor false)
    shared+=(--min-worker-port 0 --max-worker-port 0 --dashboard-agent-listen-port 0)
    shared+=(--node-ip-address "$(scontrol show node "$SLURMD_NODENAME" | tr ' ' '\n' | sed -n 's/^NodeAddr=//p')")
    [ -z "${SLURM_GPUS_ON_NODE:-}" ] || shared+=(--num-gpus "$SLURM_GPUS_ON_NODE")
    if [ "$SLURM_NODEID" -eq 0 ]; then
        exec ray start --head --port "${address##*:}" --dashboard-host 127.0.0.1 "${shared[@]}"
    fi
    wait_for_first
    exec ray start --address "$address" "${shared[@]}"
}

reached() { (exec 3<>"/dev/tcp/${address%:*}/${address##*:}") 2>/dev/null; }

wait_for_first() { # tries for two minutes, and no longer than there is something to wait for
    local logs=${1:-/nowhere}
    for _ in $(seq 240); do
        if reached; then return; fi
        if [ -e "$logs/stop" ]; then exit 143; fi
        if [ -e "$logs/lost" ]; then
            echo "a node of this job could not join the others; $logs/node_*.log say why" >&2
            exit 1
        fi
        sleep 0.5
    done
    echo "$(hostname) waited 120 s for the first node at $address in vain; can the nodes reach one another?" >&2
    exit 1
}

drive() {
    local stop=$1 driver
    shift
    trap 'touch "$stop"' USR1 TERM
    if [ "$address" != alone ]; then
        wait_for_first "$(dirname "$stop")"
    fi
    "$@" &
    driver=$!
    (
        trap '' USR1 TERM
        until [ -e "$stop" ] || ! kill -0 "$driver" 2>/dev/null; do sleep 0.5; done
        kill -USR1 "$driver" 2>/dev/null
    ) &
    outlast "$driver"
}

"$role" "$@"
