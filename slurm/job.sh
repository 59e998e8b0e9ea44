# Sourced by the job scripts. Joins the nodes of an allocation into one Ray cluster, runs one driver on the first of them,
# passes signals on to it, and puts the job back into the queue when it stopped before its end.
#
#   ROOT         the clone to run from; the folder sbatch was called in
#   CONTAINER    image to run in (by pyxis); empty runs on the bare node
#   MOUNTS       what the container sees, HOST:INSIDE[,...]; ROOT itself always
#   MAX_RESTARTS how often in a row the job is tried again without a new checkpoint (3)
#   MARGIN_S     seconds kept free at the end of the allocation (10)

ROOT=${ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}
source "$ROOT/slurm/outlast.sh"
source "$ROOT/slurm/after.sh"
DRY_RUN=${DRY_RUN:-}

step() { # becomes srun, with what every step of this job shares; prints it instead where this is a dry run
    local shared=(--overlap --kill-on-bad-exit=1 --chdir="$ROOT")
    if [ -n "${CONTAINER:-}" ]; then
        shared+=(--container-image="$CONTAINER" --container-mounts="$ROOT:$ROOT${MOUNTS:+,$MOUNTS}" --container-workdir="$ROOT")
    fi
    if [ -n "$DRY_RUN" ]; then
        printf 'srun %s\n' "$(printf '%q ' "${shared[@]}" "$@")"
    else
        exec srun "${shared[@]}" "$@"
    fi
}

end_of_job() { # seconds since 1970 at which Slurm will kill this job; empty where it never will, or does not say
    local end=${SLURM_JOB_END_TIME:-} told=""
    if [ -z "$end" ]; then
        for _ in 1 2 3; do
            told=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %e) && [ -n "$told" ] && break
            told=""
            sleep 2
        done
        if [ -n "$told" ]; then
            end=$(date -d "$told" +%s 2>/dev/null) # a job without a limit ends at no date
        else # of which `date` would make last midnight
            echo "Slurm does not say when job $SLURM_JOB_ID ends: its signals alone will stop the run before the end" >&2
        fi
    fi
    printf '%s' "$end"
}

run_job() { # COMMAND ARGUMENTS...
    local nodes first where=alone logs driver code=0 cluster="" more=()
    if [ -n "$DRY_RUN" ]; then
        nodes=${SLURM_JOB_NUM_NODES:-${NODES:-1}} first=FIRST_NODE logs=$ROOT/runs/jobs/JOB
    else
        : "${SLURM_JOB_ID:?this script is for sbatch; with --dry-run after its arguments it prints what it would run}"
        nodes=$SLURM_JOB_NUM_NODES logs=$ROOT/runs/jobs/$SLURM_JOB_ID
        mkdir -p "$logs"
        rm -f "$logs/stop" "$logs/lost" "$logs/saved" "$logs/where" "$logs"/address.*
        [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || rm -f "$logs/in_vain" # of a job that had this number once
        # A signal through srun would reach every process of the step, graders and Ray included; a file reaches the
        # driver. It is there from the first moment: a script without a trap would die of the signal, and the job with it.
        trap 'touch "$logs/stop"' USR1 TERM
        first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
        # Ray runs what it is told by whoever reaches its ports; the token keeps other users of the network out.
        RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(od -An -N 32 -tx1 /dev/urandom | tr -d ' \n')
        export RAY_AUTH_MODE RAY_AUTH_TOKEN
    fi
    if [ "$nodes" -gt 1 ]; then
        step --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --output="$logs/node_%n.log" \
            slurm/node.sh join "$logs" &
        cluster=$!
        if [ -n "$DRY_RUN" ]; then
            wait "$cluster"
        else # a node that cannot join ends the step of all; the driver must not wait for them
            (while kill -0 "$cluster" 2>/dev/null; do sleep 1; done; touch "$logs/lost") &
        fi
        set -- "$@" "cluster.machines=$nodes"
        where=joined
    fi
    if [ "$1" = train ] && [ -z "$DRY_RUN" ]; then
        more=(--until "$(end_of_job)" --margin "${MARGIN_S:-10}")
        [ -n "${more[1]}" ] || more=()
        more+=(--attempt "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}") # a node that died may keep the folder locked
        more+=(--where "$logs/where")
    fi
    step --nodes=1 --ntasks=1 --nodelist="$first" --output="$logs/driver.log" --open-mode=append \
        slurm/node.sh drive "$logs" "$where" megatron-rl "$@" "${more[@]}" &
    driver=$!
    if [ -n "$DRY_RUN" ]; then
        wait "$driver"
        return
    fi
    outlast "$driver" || code=$?
    [ -z "$cluster" ] || kill "$cluster" 2>/dev/null || true
    tail -n 3 "$logs/driver.log" >&2 || true
    settle "$code"
    return "$code"
}

main() { # COMMAND, then the script's own arguments, of which the last may be --dry-run
    local command=$1 arguments=()
    shift
    for argument in "$@"; do
        if [ "$argument" = --dry-run ]; then DRY_RUN=yes; else arguments+=("$argument"); fi
    done
    if [ "${#arguments[@]}" -eq 0 ]; then
        echo "usage: sbatch [--nodes N] slurm/$command.sbatch CONFIG [key=value...] [--dry-run]" >&2
        return 2
    fi
    cd "$ROOT" || return 2
    run_job "$command" "${arguments[@]}"
}
