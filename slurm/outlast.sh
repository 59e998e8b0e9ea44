# Sourced by what waits for a child that must outlive the signals of its parent.

outlast() { # PID: waits for this child whatever signals come meanwhile; its exit code is the child's
    while :; do # a signal ends `wait`, not the child
        wait "$1" || true
        kill -0 "$1" 2>/dev/null || break
    done
    wait "$1" # where a signal came last, the answer above was its number; a child's code is kept
}
