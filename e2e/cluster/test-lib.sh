# shellcheck shell=bash
# Of the tests on the cluster: which agent, how results are counted, and how it ends.
# Sourced after lib.sh; WORK is a folder for states, tables and results.
t0=$SECONDS passed=0 failed=0 watcher='' finished='' keep=''
# What the last line of a test calls: without it, the test ended before its end.
the_end() { finished=1; }

unable() { log "cannot run: $*" >&2; exit 2; }
# arguments [-k] [AGENT]
arguments() {
    [[ ${1:-} != -k ]] || { keep=1; shift; }
    AGENT=${1:-${WEIR_AGENT:-}}
    [[ $AGENT ]] || unable "which weir-agent? ($(basename "$0") AGENT, or WEIR_AGENT)"
    [[ -x $AGENT ]] || unable "$AGENT is not an executable (cargo build -p weir-agent)"
    AGENT=$(realpath "$AGENT")
    [[ $EUID == 0 ]] || unable "it needs root, for namespaces"
}

step() { printf '\n%s == %s\n' "$(date +%T)" "$*"; }
# one result, with its checks counted
right() { printf 'ok    %s\n' "$*"; passed=$((passed + 1)); }
wrong() { printf 'WRONG %s\n' "$*"; failed=$((failed + 1)); }
expect() { local what=$1; shift; if "$@" >/dev/null 2>&1; then right "$what"; else wrong "$what"; fi; }

state() { kctl get pods,services -A -o json > "$WORK/state.json"; }
# the checks in a log
count() {
    passed=$((passed + $(grep -c ^ok "$1" || true))) failed=$((failed + $(grep -c ^WRONG "$1" || true)))
    cat "$1" >> "$WORK/all-checks.log"
}
agents() { "$HERE/engine.sh" start "$AGENT" --node '{node}' --kubeconfig "$RUN/pki/admin.kubeconfig"; }

# shellcheck disable=SC2317,SC2329  # called by a trap
finish() {
    local code=$?
    trap - EXIT; trap '' INT TERM
    # what a failure is looked into with, before it is gone
    if alive "$RUN/fabric/init.pid" && kctl get --raw /readyz >/dev/null 2>&1; then
        kctl get pods -A -o yaml > "$WORK/pods.yaml" || true
        kctl get events -A --sort-by=.lastTimestamp > "$WORK/events.txt" || true
    fi
    [[ ! $watcher ]] || kill "$watcher" 2>/dev/null || true
    if [[ $keep ]]; then
        "$HERE/engine.sh" stop || true
    elif [[ -e $RUN/fabric/init.pid ]]; then
        "$HERE/down.sh"
    fi
    echo
    log "logs: $RUN (nodeN/engine.log: the agents; $(basename "$WORK")/: all-checks.log, pods.yaml, events.txt)"
    [[ $finished ]] || log "it did not come to its end (exit code $code)"
    [[ $code == 2 ]] || log "$passed passed, $failed failed, in $((SECONDS - t0)) s"
    [[ $failed -eq 0 || $code != 0 ]] || code=1
    exit "$code"
}
# the cluster: the one that is up, with -k, or a new one
cluster() {
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    if [[ $keep ]] && alive "$RUN/fabric/init.pid"; then
        running
        kctl delete namespace "$1" --ignore-not-found >/dev/null
        kctl delete networkpolicies -A --all >/dev/null
    else
        step "the cluster: $NODES, pods $CNI_PLUGIN, kube-proxy $PROXY_MODE, $IP_FAMILY"
        "$HERE/up.sh"
    fi
    [[ " $NODES " == *" node1 "*" "* && " $NODES " == *" node2 "* ]] || unable "it needs node1 and node2"
    mkdir -p "$WORK"; : > "$WORK/all-checks.log"
}
