#!/usr/bin/env bash
# What one task of a job does on its node, with the job's folder LOGS, which all see: `join LOGS` makes it part of the Ray
# cluster; `drive LOGS alone COMMAND...` runs the command, and tells it to save and stop once LOGS/stop is there; `drive LOGS
# joined COMMAND...` gives it the cluster's address as well. LOGS/saved is there afterwards where the run has a new checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."
source slurm/node_setup.sh
source slurm/outlast.sh

role=$1 logs=$2
shift 2
told=$logs/address.${SLURM_RESTART_COUNT:-0} # where this attempt's cluster is

join() {
    # Ray would put ranks behind whatever else wants a processor, and remember every call of theirs.
    export RAY_worker_niceness=0 RAY_task_events_report_interval_ms=0
    # Ports are the kernel's choice, so that jobs that share a node never collide. Ranks keep logs of their own.
    local shared=(--block --disable-usage-stats --num-cpus "${SLURM_CPUS_ON_NODE:-1}" --include-log-monitor false)
    shared+=(--min-worker-port 0 --max-worker-port 0 --dashboard-agent-listen-port 0)
    shared+=(--node-ip-address "$(scontrol show node "$SLURMD_NODENAME" | tr ' ' '\n' | sed -n 's/^NodeAddr=//p')")
    [ -z "${SLURM_GPUS_ON_NODE:-}" ] || shared+=(--num-gpus "$SLURM_GPUS_ON_NODE")
    if [ "$SLURM_NODEID" -eq 0 ]; then
        exec ray start --head --port 0 --dashboard-host 127.0.0.1 "${shared[@]}" > >(tell)
    fi
    wait_for_first
    exec ray start --address "$(<"$told")" "${shared[@]}"
}

tell() { # passes on what Ray says, and leaves the address it chose where the others look for it
    local line
    while IFS= read -r line; do
        printf '%s\n' "$line"
        if [[ $line =~ --address=\'([^\']+)\' ]]; then
            echo "${BASH_REMATCH[1]}" >"$told.partial"
            mv "$told.partial" "$told"
        fi
    done
}

reached() {
    local address
    [ -e "$told" ] || return 1
    address=$(<"$told")
    (exec 3<>"/dev/tcp/${address%:*}/${address##*:}") 2>/dev/null
}

wait_for_first() { # tries for two minutes, and no longer than there is something to wait for
    for _ in $(seq 240); do
        if reached; then return; fi
        if [ -e "$logs/stop" ]; then exit 143; fi
        if [ -e "$logs/lost" ]; then
            echo "a node of this job could not join the others; $logs/node_*.log say why" >&2
            exit 1
        fi
        sleep 0.5
    done
    echo "$(hostname) waited 120 s for the first node in vain; can the nodes reach one another, and do all see $logs?" >&2
    exit 1
}

drive() {
    local where=$1 stop=$logs/stop driver code=0
    shift
    touch "$logs/begun"
    trap 'touch "$stop"' USR1 TERM
    if [ "$where" != alone ]; then
        wait_for_first
        set -- "$@" "cluster.address=$(<"$told")"
    fi
    "$@" &
    driver=$!
    (
        trap '' USR1 TERM
        until [ -e "$stop" ] || ! kill -0 "$driver" 2>/dev/null; do sleep 0.5; done
        kill -USR1 "$driver" 2>/dev/null
    ) &
    outlast "$driver" || code=$?
    # Asked here, where the run's folder is seen as the driver saw it, and in whatever way that ended.
    if [ -e "$logs/where" ] && [ "$(<"$logs/where")/checkpoints/latest" -nt "$logs/begun" ]; then touch "$logs/saved"; fi
    return "$code"
}

"$role" "$@"
