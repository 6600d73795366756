#!/bin/bash
# chart-test.sh [-k] AGENT [CONTROLLER]: the chart's life on a real cluster: mode, upgrade, drain, uninstallation.
#
# Installs the chart with Helm and sees with packets that the mode changes for all nodes without a restart; that an
# upgrade of the image, a rollback, kills and drains lose and let through nothing; that an uninstallation removes all
# that Weir made, and fails by name where a node is not reached.
# CONTROLLER: a weir-controller; else the one beside AGENT. HELM: else the one in PATH.
# Takes up.sh's settings from the environment. -k: uses the cluster that is up, if one is, and leaves it up.
# Exit code: 0 all is right, 1 something is not, 2 it could not be tried.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/test-lib.sh"

chart_arguments "$@"
command -v curl >/dev/null || unable "it needs curl"
WORK=$RUN/chart-test
IMAGE=weir.test/weir WEIR=$(dirname "$AGENT")/weir
VALUES=(--set "image.repository=$IMAGE,image.pullPolicy=Never,uninstall.timeoutSeconds=20")

both_rolled_out() { rolled_out deployment/weir-controller 60 && rolled_out daemonset/weir-agent 60; }
# each pod's identity and how often it was restarted
pods() { weir get pods -l 'app.kubernetes.io/component in (agent, controller)' -o jsonpath='{range .items[*]}{.metadata.uid} {.status.containerStatuses[0].restartCount}{"\n"}{end}' | sort; }
same() { [[ $("${@:2}") == "$1" ]]; }
refuse() { ! "$@"; }
# what a node's nf_tables has, Weir's apart
weirs_tables() { in_ns "$1" nft list tables | grep -E ' weir$' || true; }
other_tables() { in_ns "$1" nft list tables | grep -vE ' weir$' || true; }
every_node() { local n; for n in $NODES; do "$@" "$n" || return 1; done; }
has_table() { [[ $(weirs_tables "$1") ]]; }
has_none() { [[ ! $(weirs_tables "$1") ]]; }
says() { in_ns "$2" curl -sS --max-time 5 http://127.0.0.1:9441/readyz | grep -q "$1"; }
within() { local seconds=$1; shift; (wait_for "$seconds" "$*" "$@") >/dev/null 2>&1; }
set_mode() { weir patch configmap weir-mode --type merge -p "{\"data\":{\"mode\":\"$1\"}}" >/dev/null; }
enforces() { ! says '^mode:' "$1"; }
would() { [[ $(in_ns fabric "$WEIR" logs --kubeconfig "$RUN/pki/admin.kubeconfig" --verdict would-deny --since 2m) == *trial/b* ]]; }
status() { in_ns fabric "$WEIR" status --kubeconfig "$RUN/pki/admin.kubeconfig" "$@"; }
# (its exit code says whether all is well)
told() { { status -o json || true; } | python3 -c "import json, sys; s = json.load(sys.stdin); sys.exit(not ($1))"; }
# ends a daemon of a node, and starts it as it was
again() {
    local p command=()
    p=$(ps -o pid= --ppid "$(<"$RUN/$1/$2.pid")" | tr -d ' ')
    readarray -d '' command < "/proc/$p/cmdline"
    stop "$1" "$2" "${3:-TERM}" || true
    [[ ${4:-} ]] && "$4"
    start "$1" "$2" "${command[@]}"
}
kill_agent() {
    local id
    id=$(weir get pod "$(names agents "$1")" -o jsonpath='{.status.containerStatuses[0].containerID}')
    in_ns "$1" ctr -n k8s.io task kill -s KILL "${id#*//}" 2>/dev/null
}
watch() {
    state; cp "$WORK/state.json" "$WORK/watched.json"
    "$HERE/probe.py" watch "$WORK/watched.json" --log "$WORK/watch.log" <<<"$1" >"$WORK/watch.out" &
    watcher=$!
}
watched() {
    kill "$watcher"; wait "$watcher" || true; watcher=
    cat "$WORK/watch.out"
    [[ -s $WORK/watch.log ]] || wrong "no packets were sent"
    count "$WORK/watch.log"
    : > "$WORK/watch.log"
}

# one node with routed pods, one with bridged ones
[[ ! -e /proc/sys/net/bridge ]] || export CNI_PLUGIN_node2=${CNI_PLUGIN_node2:-bridge}
cluster trial
helm uninstall weir --no-hooks --ignore-not-found --wait >/dev/null
step "two images, and the chart"
strip -o "$WORK/weir-agent" "$AGENT"; strip -o "$WORK/weir-controller" "$CONTROLLER"
for tag in first next; do
    # of another time: another image of the same programs
    SOURCE_DATE_EPOCH=$([[ $tag == first ]] && echo 1 || echo 2) "$HERE/../../deploy/image.py" --for-tests \
        --name "$IMAGE:$tag" "$WORK/$tag.tar" "$WORK/weir-agent" "$WORK/weir-controller"
    "$HERE/load-image.sh" "$WORK/$tag.tar" >/dev/null 2>&1
done
expect "they are two" refuse cmp -s "$WORK/first.tar" "$WORK/next.tar"
others=$(for n in $NODES; do other_tables "$n"; done)
helm install weir "$CHART" --create-namespace "${VALUES[@]}" --set image.tag=first >/dev/null
kctl create namespace trial --dry-run=client -o yaml | kctl apply -f - >/dev/null
{ trial_pod a node1 "$HTTP"; trial_pod b node1 "$TCP"; trial_pod c node2 "$HTTP"; trial_pod d node2 "$TCP"; } | kctl apply -f - >/dev/null
policy deny-all '{podSelector: {}, policyTypes: [Ingress, Egress]}'
policy from-a '{podSelector: {matchLabels: {role: a}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {role: c}}}]}]}'
policy to-c '{podSelector: {matchLabels: {role: c}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {role: a}}}], ports: [{port: 80}]}]}'
expect "controllers and agents are ready" both_rolled_out
kctl -n trial wait --for=condition=Ready pods --all --timeout=60s >/dev/null
holds='80/TCP        trial/b  trial/c  trial/d
trial/a       drop     pass     drop
trial/b       .        drop     drop
trial/d       drop     drop     .'
open='80/TCP        trial/b  trial/c  trial/d
trial/a       pass     pass     pass
trial/b       .        pass     pass
trial/d       pass     pass     .'
allowed='80/TCP        trial/c
trial/a       pass'
tables 20 <<<"$holds"

step "mode off, and back: no pod is restarted; what policies allow passes all the while"
before=$(pods)
watch "$allowed"
helm upgrade weir "$CHART" --reuse-values --set mode=off >/dev/null
expect "within 20 s no node has a table of Weir's" within 20 every_node has_none
tables 5 <<<"$open"
expect "all other tables are as they were" same "$others" eval 'for n in $NODES; do other_tables "$n"; done'
expect "every agent is ready, and says off" every_node says '^mode: off'
expect "agents are ready for Kubernetes, too" rolled_out daemonset/weir-agent 5
if [[ -x $WEIR ]]; then
    expect "weir status says that all is off" within 40 told 's["ok"] and s["mode"] == "off" and all(n["state"] == "off" for n in s["nodes"])'
    status || true
fi
# an agent that starts while it is off, with controllers and without
weir scale deployment weir-controller --replicas=0 >/dev/null
kill_agent node2
expect "an agent that starts without controllers stays off" within 60 says '^mode: off' node2
expect "and makes no tables" has_none node2
weir scale deployment weir-controller --replicas=2 >/dev/null
expect "controllers are ready again" rolled_out deployment/weir-controller 60
before=$(pods)
helm upgrade weir "$CHART" --reuse-values --set mode=enforce >/dev/null
expect "within 20 s every node has a table again" within 20 every_node has_table
tables 5 <<<"$holds"
set_mode aduit
if [[ -x $WEIR ]]; then
    expect "what is no mode changes nothing, and is told" within 40 told '"aduit" in str(s["warnings"]) and s["mode"] == "enforce"'
fi
tables 0 <<<"$holds"
set_mode audit
expect "every agent is ready, and says audit" within 20 every_node says '^mode: audit'
tables 5 <<<"$open"
if [[ -x $WEIR ]]; then
    expect "what would be denied is told, with names" within 20 would
fi
set_mode enforce
expect "every agent enforces again" within 20 every_node enforces
tables 5 <<<"$holds"
expect "no pod was restarted for any of that" same "$before" pods
watched

step "another image, and back: with packets all the while"
watch "$holds"
helm upgrade weir "$CHART" --reuse-values --set image.tag=next >/dev/null
expect "the new image is rolled out" both_rolled_out
images() { weir get pods -l 'app.kubernetes.io/component in (agent, controller)' --field-selector=status.phase=Running -o jsonpath='{range .items[*]}{.spec.containers[0].image}{"\n"}{end}' | sort -u; }
expect "all pods have it" within 30 same "$IMAGE:next" images
helm rollback weir >/dev/null
expect "the old one is rolled out again" both_rolled_out
expect "all pods have that" within 30 same "$IMAGE:first" images

step "kills and drains"
kill_agent node1; kill_agent node2
for pod in $(names controllers); do
    weir delete pod "$pod" --grace-period=0 --force >/dev/null 2>&1
    expect "controllers are ready after $pod was killed" rolled_out deployment/weir-controller 60
done
again node1 kubelet KILL
expect "agents are ready" rolled_out daemonset/weir-agent 60
drain() { kctl drain "$1" --ignore-daemonsets --pod-selector=app.kubernetes.io/component=controller --timeout="$2"; }
expect "node2 is drained of controllers" drain node2 60s
expect "both run on node1 then" rolled_out deployment/weir-controller 60
drain node1 5s > "$WORK/drain.log" 2>&1 || true
expect "of the last ones, the disruption budget keeps one" grep -q 'disruption budget' "$WORK/drain.log"
expect "which serves" test "$(weir get deployment weir-controller -o jsonpath='{.status.readyReplicas}')" -ge 1
kctl uncordon node1 node2 >/dev/null
expect "controllers are ready again" rolled_out deployment/weir-controller 60
watched
tables 0 <<<"$holds"

step "uninstalled while one agent is away: it fails, and names the node"
# the node and its pods are as they were; its rules stay
weir patch daemonset weir-agent --type merge -p '{"spec":{"template":{"spec":{"affinity":{"nodeAffinity":{
    "requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[
    {"key":"kubernetes.io/hostname","operator":"NotIn","values":["node2"]}]}]}}}}}}}' >/dev/null
expect "node2 has no agent" within 60 eval '[[ -z $(names agents node2) ]]'
rolled_out daemonset/weir-agent 60
revision=$(helm list -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["revision"])')
code=0
helm uninstall weir > "$WORK/uninstall.log" 2>&1 || code=$?
cat "$WORK/uninstall.log"
expect "helm uninstall fails" test "$code" != 0
expect "Helm shows what the hook says" grep -q 'NOT REACHED: 1 nodes' "$WORK/uninstall.log"
weir logs job/weir-withdraw > "$WORK/withdraw.log" 2>&1 || true
expect "node2 is named" grep -qE '^  node2: ' "$WORK/withdraw.log"
expect "with what to do there" grep -q 'nft delete table inet weir' "$WORK/withdraw.log"
expect "node1 has confirmed" grep -qx '  node1' "$WORK/withdraw.log"
expect "node1 has no tables" has_none node1
expect "node2 has its own" has_table node2
expect "the release is still there" helm status weir
expect "whoever stays after all rolls back" helm rollback weir "$revision"
expect "and node1 has a table again" within 20 has_table node1
set_mode withdrawn
expect "and has none again" within 20 has_none node1
expect "it is deleted without the hook" helm uninstall weir --no-hooks --wait
tables 0 <<'T'
80/TCP        trial/b  trial/d
trial/a       pass     drop
trial/c       drop     drop
T
expect "weir-agent cleanup on node2" in_ns node2 "$AGENT" cleanup
tables 5 <<<"$open"
expect "Weir's pods are gone" within 90 eval '[[ -z $(names agents)$(names controllers) ]]'

step "installed again, and uninstalled as it should be"
weir delete job weir-withdraw --ignore-not-found >/dev/null
helm install weir "$CHART" "${VALUES[@]}" --set image.tag=first >/dev/null
expect "controllers and agents are ready" both_rolled_out
tables 20 <<<"$holds"
helm uninstall weir --wait > "$WORK/uninstall.log" 2>&1 || true
cat "$WORK/uninstall.log"
expect "it succeeded" refuse helm status weir
expect "no node has a table of Weir's" every_node has_none
expect "all other tables are as they were" same "$others" eval 'for n in $NODES; do other_tables "$n"; done'
expect "no node has a slice on disk" every_node eval 'refuse in_ns "$n" test -e /var/lib/weir/slice'
left() {
    weir get all,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets,jobs -o name | grep -vE '^(configmap/kube-root-ca.crt|serviceaccount/default)$' || true
    kctl get clusterroles,clusterrolebindings -o name | grep weir || true
}
expect "nothing of Weir's is left in the API" within 60 eval '[[ -z $(left) ]]'
left
tables 0 <<<"$open"
the_end
