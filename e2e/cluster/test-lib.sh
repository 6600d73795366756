# shellcheck shell=bash disable=SC2034  # sourced: what is set here is used there
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

# chart_arguments [-k] AGENT [CONTROLLER]: also what installs the chart, into namespace NS
chart_arguments() {
    arguments "$@"
    [[ ${1:-} != -k ]] || shift
    CONTROLLER=$(realpath "${2:-$(dirname "$AGENT")/weir-controller}")
    [[ -x $CONTROLLER ]] || unable "$CONTROLLER is not an executable (cargo build -p weir-controller)"
    HELM=$(command -v "${HELM:-helm}") || unable "no helm in PATH, and none in HELM"
    NS=weir-system CHART=$(realpath "$HERE/../../deploy/helm/weir")
}
helm() { in_ns fabric "$HELM" --kubeconfig "$RUN/pki/admin.kubeconfig" -n "$NS" "$@"; }
weir() { kctl -n "$NS" "$@"; }
# names controllers|agents [NODE]: of the pods that are there
names() {
    weir get pods -l "app.kubernetes.io/component=${1%s}" ${2:+--field-selector=spec.nodeName=$2} \
        -o jsonpath='{range .items[*]}{.metadata.name}{"\n"}{end}'
}
rolled_out() { weir rollout status "$1" --timeout="$2s" >/dev/null; }

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

# tables WITHIN: those on stdin, by packets, right within so many seconds and then still
tables() {
    local log=$WORK/checks.log
    state; : > "$log"
    "$HERE/probe.py" check "$WORK/state.json" --within "$1" --log "$log" || [[ -s $log ]] || wrong "no packets could be sent"
    count "$log"
}

# a pod of the namespace trial, with a Service
trial_pod() {                           # NAME NODE PROBE
    cat <<Y
---
apiVersion: v1
kind: Pod
metadata: {namespace: trial, name: $1, labels: {role: $1, weir.test/pod: trial-$1}}
spec:
  nodeName: $2
  hostname: trial-$1
  terminationGracePeriodSeconds: 0
  dnsPolicy: Default
  enableServiceLinks: false
  automountServiceAccountToken: false
  containers:
  - name: serve
    image: $(<"$IMG/agnhost.name")
    args: [netexec, --http-port=80, --udp-port=53]
    readinessProbe: {$3, periodSeconds: 1, failureThreshold: 2}
    livenessProbe: {$3, periodSeconds: 1, failureThreshold: 2, initialDelaySeconds: 5}
---
apiVersion: v1
kind: Service
metadata: {namespace: trial, name: $1}
spec:
  selector: {weir.test/pod: trial-$1}
  ipFamilyPolicy: PreferDualStack
  ports:
  - {name: http, port: 8000, targetPort: 80}
  - {name: dns, port: 5353, targetPort: 53, protocol: UDP}
Y
}
HTTP='httpGet: {path: /hostname, port: 80}, timeoutSeconds: 3'
TCP='tcpSocket: {port: 80}, timeoutSeconds: 3'
# (to start a command in a container takes seconds while others start)
EXEC='exec: {command: [/agnhost, connect, "localhost:80", --timeout=1s]}, timeoutSeconds: 10'
# policy NAME SPEC: one of the namespace trial
policy() {
    kctl apply -f - >/dev/null <<<"{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: trial, name: $1}, spec: $2}"
}
address() { kctl -n trial get pod "$1" -o jsonpath='{.status.podIP}'; }

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
