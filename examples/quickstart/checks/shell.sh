# shellcheck shell=bash
# Functions for run.sh: start_demo FOLDER, step TEXT, run COMMAND ...

# Clears the folder of an earlier demo and sets OUT; later commands run in the repository's root.
start_demo() {
    local root
    root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../../..")
    OUT=$(realpath --canonicalize-missing "$1")
    if [ -n "$(ls -A "$OUT" 2>/dev/null)" ] && [ ! -e "$OUT/.quickstart" ]; then
        echo "ConfigError: $OUT is not empty and was not made by this demo. Give another folder." >&2
        exit 78
    fi
    rm -rf "$OUT"
    mkdir -p "$OUT/logs" "$OUT/data"
    touch "$OUT/.quickstart"
    cd "$root"
    OUT=${OUT#"$root/"}
    STEP=0
    SECONDS=0
    export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
    trap stop_demo INT
}

step() {
    STEP=$((STEP + 1))
    printf '\n[%d] %s  (%d s so far)\n' "$STEP" "$1" "$SECONDS"
}

# Prints a command, runs it, shows its output but torchrun's warnings, and logs all of it.
run() {
    local log code=0
    log=$OUT/logs/$(printf '%02d' "$STEP").log
    printf '    $'
    printf ' %q' "$@"
    printf '\n'
    # The readers ignore Ctrl-C: the command may still save and report.
    "$@" 2>&1 | (
        trap '' INT
        tee -a "$log" | grep --line-buffered -vE '^(W1|\[W|\*\*\*|[[:space:]]*$)' | sed -u 's/^/      /'
    ) || code=${PIPESTATUS[0]}
    if [ "$code" -ne 0 ]; then
        echo "step $STEP failed: the command above ended with code $code. Read $log." >&2
        exit "$code"
    fi
}

stop_demo() {
    echo "InterruptError: the demo stopped in step $STEP, after $SECONDS s. Its output is in $OUT;" \
        "the same command starts over." >&2
    exit 130
}
