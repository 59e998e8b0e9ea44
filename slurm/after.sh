# Sourced by job.sh. What becomes of a job whose driver has ended: it goes back into the queue where it has steps left and gets
# anywhere. $logs/saved is there where this attempt left a checkpoint, $logs/in_vain counts the attempts in a row that did not.

STOPPED=75      # the exit code of a run that was stopped, saved, and has steps left
FAILED=1        # the exit code of a run that broke down
INTERRUPTED=130 # the exit code of a run that somebody ended

ask_about_job() { # fills `facts`; a busy controller may have to be asked more than once
    for _ in 1 2 3 4 5 6; do
        if facts=$(scontrol --oneliner show job "$SLURM_JOB_ID") && [ -n "$facts" ]; then return; fi
        sleep 5
    done
    return 1
}

fact() { # NAME: its value in `facts`
    [[ " $facts" =~ \ $1=([^ ]*) ]] && printf '%s' "${BASH_REMATCH[1]}"
}

was_preempted() { # in this attempt; of Slurm's times the later one sorts behind
    local since
    since=$(fact PreemptTime) && [ "$since" != None ] && [[ ! $since < $(fact StartTime) ]]
}

was_cancelled() { # Slurm is ending the job, and neither for its time nor to give its place to another
    case $(fact JobState) in COMPLETING | CANCELLED) ;; *) return 1 ;; esac
    [ "$(fact Reason)" != TimeLimit ] && ! was_preempted
}

settle() { # CODE: asks for the job to be run again where that is of use, and says what happened
    local code=$1 what facts="" vain=0 most=${MAX_RESTARTS:-3}
    if [ "$code" -eq "$STOPPED" ]; then
        what="was stopped before its end"
    elif [ "$code" -gt 128 ] && [ -e "$logs/stop" ]; then
        what="was told to stop before there was anything to save"
    elif [ "$code" -eq "$FAILED" ]; then
        what="failed"
    elif [ "$code" -gt 128 ] && [ "$code" -ne "$INTERRUPTED" ]; then
        what="failed: signal $((code - 128)) ended its driver"
    else
        return
    fi
    if ! ask_about_job; then # who has cancelled the job must not see it come back
        echo "Slurm does not answer, so job $SLURM_JOB_ID, which $what, ends; submit it again, and it goes on in its folder" >&2
        return
    fi
    if [ "$(fact Restarts)" -gt "${SLURM_RESTART_COUNT:-0}" ]; then return; fi # Slurm has put it back already
    if was_cancelled; then
        echo "job $SLURM_JOB_ID was cancelled and ends; submitted again it goes on in its folder" >&2
        return
    fi
    if [ "$(fact Requeue)" = 0 ]; then
        echo "job $SLURM_JOB_ID $what and ends, since it may not be requeued; submitted again it goes on in its folder" >&2
        return
    fi
    [ -e "$logs/saved" ] || vain=$(cat "$logs/in_vain" 2>/dev/null || echo 0)
    case $what in
        failed*) vain=$((vain + 1)) ;;
        *) [ -e "$logs/saved" ] || was_preempted || vain=$((vain + 1)) ;; # a preempted job is not to blame
    esac
    echo "$vain" >"$logs/in_vain.partial" && mv "$logs/in_vain.partial" "$logs/in_vain"
    if [ "$vain" -gt "$most" ]; then
        give_up "$vain" "$what"
    else
        again "$what$([ "$vain" -eq 0 ] || echo "; $vain of at most $most attempts in a row without a new checkpoint")"
    fi
}

give_up() { # ATTEMPTS WHAT
    local tried="job $SLURM_JOB_ID ends: it $2, and $1 attempts in a row left no new checkpoint"
    case $2 in
        failed*) echo "$tried; $logs/driver.log says why" >&2 ;;
        *)
            echo "$tried. Its time limit is $(fact TimeLimit), of which this one had ${SECONDS} s for setting up and the first" \
                "step: give it more time (sbatch --time), or a later warning (sbatch --signal=B:USR1@120 comes 120 s before the end)" >&2
            ;;
    esac
}

again() { # WHY: the same job from its last checkpoint; it is told first, since Slurm ends this script at once
    echo "job $SLURM_JOB_ID goes back into the queue: it $1" >&2
    for _ in 1 2 3 4 5 6; do
        if scontrol requeue "$SLURM_JOB_ID"; then return; fi
        sleep 5
        # Meanwhile it may have been cancelled, or put back by a scheduler that preempts by requeueing.
        if ask_about_job && { was_cancelled || [ "$(fact Restarts)" -gt "${SLURM_RESTART_COUNT:-0}" ]; }; then return; fi
    done
    echo "Slurm does not take job $SLURM_JOB_ID back; submit it again, and it goes on in its folder" >&2
}
