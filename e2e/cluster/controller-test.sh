#!/bin/bash
# controller-test.sh [-k] AGENT [CONTROLLER]: controllers and agents on a real cluster, installed with Helm.
#
# Makes the image (deploy/image.py), installs the chart (deploy/helm/weir), and sees with packets that policies hold
# across nodes: with every namespace under a deny-all, Weir's too, and no cluster DNS; while controllers are killed,
# agents start without any, and the API server starts anew. Tries tokens that must be refused.
# CONTROLLER: a weir-controller; else the one beside AGENT. HELM: else the one in PATH.
# Takes up.sh's settings from the environment. -k: uses the cluster that is up, if one is, and leaves it up.
# Exit code: 0 all is right, 1 something is not, 2 it could not be tried.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/test-lib.sh"

chart_arguments "$@"
command -v curl >/dev/null && curl --version | grep -q HTTP2 || unable "it needs a curl with HTTP2"
[[ $DNS == 0 ]] || unable "without cluster DNS it is to be tried: DNS=0"
WORK=$RUN/controller-test
IMAGE=weir.test/weir
VALUES=(--set "image.repository=$IMAGE,image.tag=test,image.pullPolicy=Never")

deny_all() {
    local n
    for n in $(kctl get namespaces -o jsonpath='{.items[*].metadata.name}'); do
        printf -- '---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: %s, name: deny-all}, spec: {podSelector: {}, policyTypes: [Ingress, Egress]}}\n' "$n"
    done | kctl apply -f - >/dev/null
}
first_controller() { names controllers | sed -n 1p; }
none() { [[ -z $(names "$1") ]]; }
# may WHO VERB WHAT...: yes or no
may() { local who=$1; shift; kctl auth can-i "$@" --as "system:serviceaccount:$NS:$who" 2>/dev/null || true; }
yes() { [[ $("$@") == yes ]]; }
no() { [[ $("$@") == no ]]; }
# metric PATTERN: added up over all controllers, asked by their own nodes, which policies let through
metric() {
    weir get pods -l app.kubernetes.io/component=controller -o jsonpath='{range .items[*]}{.spec.nodeName} {.status.podIP}{"\n"}{end}' |
        while read -r node ip; do in_ns "$node" curl -sS --max-time 5 "http://$(host "$ip"):9440/metrics" </dev/null || true; done |
        awk -v pattern="^$1" '$0 ~ pattern { n += $NF } END { printf "%d\n", n }'
}

# --- tokens: what a controller says to who shows one -------------------------------------

# ask TOKEN: Welcome NODE, or the status of gRPC that it is refused with. A curl that is still sending when it is
# refused may miss the status, and asks again.
ask() {
    local answer=$WORK/answer head=$WORK/head status='' _
    for _ in 1 2 3; do
        : > "$answer"; : > "$head"
        # FromAgent { hello { protocol: 1 } }, as gRPC frames it; then it waits for what is said to that
        { printf '\0\0\0\0\4\12\2\10\1'; sleep 1; } | in_ns node1 curl -sS --http2 --max-time 12 --cacert "$WORK/ca.crt" \
            -o "$answer" -D "$head" --connect-to "weir-controller.$NS.svc:9443:$service:9443" -H 'content-type: application/grpc' \
            -H 'te: trailers' ${1:+-H "authorization: Bearer $1"} -X POST -T - \
            "https://weir-controller.$NS.svc:9443/weir.v1.Slices/Follow" 2>>"$WORK/curl.log" || true
        status=$(sed -n 's/^grpc-status: *\([0-9]*\).*/\1/p' "$head" | tail -n 1)
        [[ ! -s $answer && -z $status ]] || break
    done
    if [[ -s $answer ]]; then
        echo "Welcome $(grep -aoE 'node[0-9]' "$answer" | sort -u | tr '\n' ' ')"
    else
        echo "refused ${status:-without a word}"
    fi
}
says() { local said; said=$(ask "$2"); log "$said" >> "$WORK/said.log"; [[ $said == "$1"* ]]; }
# token of an agent's pod, or of others
token() { weir create token weir-agent --audience weir-controller "$@"; }
pod_token() { token --bound-object-kind Pod --bound-object-name "$1"; }

tokens() {
    local one two key=$RUN/pki/sa.key
    service=$(host "$(weir get service weir-controller -o jsonpath='{.spec.clusterIP}')")
    weir get configmap weir-ca -o jsonpath='{.data.ca\.crt}' > "$WORK/ca.crt"
    one=$(names agents node1) two=$(names agents node2)
    expect "an agent's token is taken, and its node known from it" says "Welcome node1 " "$(pod_token "$one")"
    expect "that of the other node's agent is for the other node, wherever it is shown" says "Welcome node2 " "$(pod_token "$two")"
    expect "no token: refused (16)" says "refused 16" ""
    expect "no token at all, but a word: refused (16)" says "refused 16" "nonsense"
    expect "for another audience: refused (16)" says "refused 16" \
        "$(weir create token weir-agent --audience other --bound-object-kind Pod --bound-object-name "$one")"
    expect "for the API server's audience: refused (16)" says "refused 16" \
        "$(weir create token weir-agent --bound-object-kind Pod --bound-object-name "$one")"
    expect "the agents' account, but no pod: refused (7)" says "refused 7" "$(token)"
    expect "the agents' account, and a node's name without a pod: refused (7)" says "refused 7" \
        "$(token --bound-object-kind Node --bound-object-name node2)"
    expect "another account of the namespace: refused (7)" says "refused 7" \
        "$(weir create token weir-controller --audience weir-controller --bound-object-kind Pod --bound-object-name "$(first_controller)")"
    kctl -n trial create serviceaccount weir-agent --dry-run=client -o yaml | kctl apply -f - >/dev/null
    expect "an account of that name in another namespace: refused (7)" says "refused 7" \
        "$(kctl -n trial create token weir-agent --audience weir-controller)"
    expect "signed anew by the API server's key, it is taken" says "Welcome node1 " "$(pod_token "$one" | "$HERE/token.py" "$key")"
    expect "expired an hour ago: refused (16)" says "refused 16" "$(pod_token "$one" | "$HERE/token.py" "$key" -7200)"
    openssl ecparam -name prime256v1 -genkey -noout -out "$WORK/other.key" 2>/dev/null
    expect "signed by another key: refused (16)" says "refused 16" "$(pod_token "$one" | "$HERE/token.py" "$WORK/other.key")"
    expect "without TLS nobody is served" refuse in_ns node1 curl -sS --http2-prior-knowledge --max-time 5 \
        "http://$service:9443/"
}
refuse() { ! "$@"; }

# -----------------------------------------------------------------------------------------

# one node with routed pods, one with bridged ones
[[ ! -e /proc/sys/net/bridge ]] || export CNI_PLUGIN_node2=${CNI_PLUGIN_node2:-bridge}
cluster trial
helm uninstall weir --no-hooks --ignore-not-found --wait >/dev/null
step "image and chart"
image() { "$HERE/../../deploy/image.py" --for-tests --name "$IMAGE:test" "$1" "$WORK/weir-agent" "$WORK/weir-controller"; }
# once, and not for each image
strip -o "$WORK/weir-agent" "$AGENT"; strip -o "$WORK/weir-controller" "$CONTROLLER"
image "$WORK/weir.tar"
"$HERE/load-image.sh" "$WORK/weir.tar" >/dev/null 2>&1
image "$WORK/again.tar" >/dev/null
expect "the same image twice has the same bytes" cmp "$WORK/weir.tar" "$WORK/again.tar"
expect "helm lint is silent" helm lint --strict "$CHART"
kctl create namespace "$NS" --dry-run=client -o yaml | kctl apply -f - >/dev/null
kctl create namespace trial --dry-run=client -o yaml | kctl apply -f - >/dev/null
for values in "${VALUES[1]}" tls.secretName=s,tls.caConfigMap=c agent.hostSetup=true,controller.hostNetwork=true \
    'networkPolicy.apiServer.cidrs={192.0.2.1/32}' networkPolicy.enabled=false mode=off,resourceQuota.enabled=true uninstall.withdraw=false; do
    helm template weir "$CHART" --set "$values" > "$WORK/rendered.yaml"
    expect "the API server takes the chart with $values" kctl apply --dry-run=server -f "$WORK/rendered.yaml"
done

for file in weir withdraw; do
    expect "and the plain manifests, deploy/$file.yaml" kctl apply --dry-run=server -f "$(dirname "$CHART")/../$file.yaml"
done

step "every namespace denies all; then Weir is installed, without cluster DNS"
deny_all
helm install weir "$CHART" "${VALUES[@]}" >/dev/null
{ trial_pod a node1 "$HTTP"; trial_pod b node1 "$TCP"; trial_pod c node2 "$HTTP"; trial_pod d node2 "$TCP"; } | kctl apply -f - >/dev/null
expect "both controllers are ready within a minute" rolled_out deployment/weir-controller 60
expect "the agents are ready within a minute" rolled_out daemonset/weir-agent 60
kctl -n trial wait --for=condition=Ready pods --all --timeout=60s >/dev/null
expect "agents may read nothing in the API" no may weir-agent list pods -A
expect "nor secrets of their own namespace" no may weir-agent get secrets -n "$NS"
expect "controllers may read pods" yes may weir-controller list pods -A
expect "and their Secret, but no other one" yes may weir-controller get secret/weir-ca -n "$NS"
expect "no other one" no may weir-controller get secret/other -n "$NS"
expect "and write no policies" no may weir-controller create networkpolicies -n "$NS"

step "across nodes: nothing passes but what a pod's own node sends; then a may reach c"
tables 20 <<'T'
80/TCP        trial/a  trial/b  trial/c  trial/d
trial/a       pass     drop     drop     drop
trial/b       drop     pass     drop     drop
trial/c       drop     drop     pass     drop
trial/d       drop     drop     drop     pass
node1         pass     pass     drop     drop
node2         drop     drop     pass     pass
T
policy from-a '{podSelector: {matchLabels: {role: a}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {role: c}}}]}]}'
policy to-c '{podSelector: {matchLabels: {role: c}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {role: a}}}], ports: [{port: 80}]}]}'
holds='80/TCP        trial/b  trial/c  trial/d
trial/a       drop     pass     drop
trial/b       .        drop     drop
trial/d       drop     drop     .'
tables 15 <<<"$holds"

step "tokens"
tokens

if [[ -x $(dirname "$AGENT")/weir ]]; then
    step "weir status"
    status() { in_ns fabric "$(dirname "$AGENT")/weir" status --kubeconfig "$RUN/pki/admin.kubeconfig" "$@"; }
    told() { status -o json | python3 -c 'import json, sys; s = json.load(sys.stdin); sys.exit(not (s["ok"] and sum(c["agents"] or 0 for c in s["controllers"]) == len(s["nodes"]) == 2 and s["toEnforce"]))'; }
    # controllers write what they know every 15 seconds
    wait_for 60 "what controllers tell" told || true
    status || true
    expect "all is well, all nodes enforce, and it is known how fast" told
    . "$HERE/answers.sh" "$holds"
fi

step "Kubernetes Events, each once though two controllers write them"
# heard REASON [NAMESPACE]: what is said, one a line
heard() {
    kctl -n "${2:-heard}" get events --field-selector "reportingComponent=weir.dev/controller,reason=$1" \
        -o jsonpath='{range .items[*]}{.involvedObject.kind}/{.involvedObject.name} {.type}: {.message}{"\n"}{end}'
}
# one PATTERN REASON [NAMESPACE]: it is said once. nobody: not at all
one() { local pattern=$1; shift; [[ $(heard "$@" | grep -c "^$pattern") == 1 ]]; }
nobody() { local pattern=$1; shift; ! heard "$@" | grep -q "^$pattern"; }
all_heard() { kctl get events -A --field-selector reportingComponent=weir.dev/controller -o jsonpath='{range .items[*]}{.metadata.namespace}/{.metadata.name}{"\n"}{end}' | sort; }
# a policy as an API server with other rules has stored it: this one would refuse it
stored() {
    local key value; key=$(printf '/registry/networkpolicies/heard/%s' "$1" | base64 -w 0)
    value=$(base64 -w 0 <<<"{\"kind\": \"NetworkPolicy\", \"apiVersion\": \"networking.k8s.io/v1\", \"metadata\": {\"name\": \"$1\", \"namespace\": \"heard\", \"uid\": \"$(</proc/sys/kernel/random/uuid)\", \"generation\": 1, \"creationTimestamp\": \"2020-01-01T00:00:00Z\"}, \"spec\": {\"podSelector\": {}, \"policyTypes\": [\"Ingress\"], \"ingress\": [{\"from\": [{\"ipBlock\": {\"cidr\": \"10.0.0.0/33\"}}]}]}}")
    in_ns fabric curl -sSf -d "{\"key\": \"$key\", \"value\": \"$value\"}" http://127.0.0.1:2379/v3/kv/put >/dev/null
}
kctl delete events -A --field-selector reportingComponent=weir.dev/controller >/dev/null
kctl delete namespace heard --ignore-not-found >/dev/null
kctl create namespace heard --dry-run=client -o yaml | kctl apply -f - >/dev/null
heard_pod() { trial_pod "$@" | sed 's/namespace: trial/namespace: heard/'; }
{ heard_pod e node1 "$TCP"; heard_pod f node2 "$TCP"; } | kctl apply -f - >/dev/null
kctl -n heard wait --for=condition=Ready pods --all --timeout=60s >/dev/null
{
    echo '{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: heard, name: nothing}, spec: {podSelector: {matchLabels: {role: nobody}}}}'
    echo '---'
    echo '{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: heard, name: isolate}, spec: {podSelector: {}}}'
} | kctl apply -f - >/dev/null
heard_pod g node1 "$TCP" | kctl apply -f - >/dev/null
stored wrong; stored stays
wait_for 60 "what is only said after a while" one "NetworkPolicy/nothing" SelectsNoPod
kctl get events -A --field-selector reportingComponent=weir.dev/controller
expect "of a policy that selects nothing" one "NetworkPolicy/nothing Normal: It selects no pod" SelectsNoPod
expect "and no other one" test "$(heard SelectsNoPod | wc -l)" == 1
expect "of one that cannot be enforced: where, why, and what is done" \
    one 'NetworkPolicy/wrong Warning: .*spec.ingress.0..from.0..ipBlock.cidr.*10.0.0.0/33.*matches nothing' CannotBeEnforced
expect "of one that isolates pods: how many, and which" \
    one 'NetworkPolicy/isolate Normal: It isolates 2 pods for ingress .*heard/e, heard/f' IsolatesPods
expect "and of the pods, as they are few" one 'Pod/e Normal: NetworkPolicy heard/isolate isolates it for ingress' Isolated
expect "not of one that came later" nobody Pod/g Isolated
expect "kubectl describe shows it" eval "kctl -n heard describe pod e | grep -q 'isolates it for ingress'"
expect "not of what was isolated when controllers started" test -z "$(heard IsolatesPods trial)$(heard Isolated trial)"
kctl -n heard patch networkpolicy wrong --type=json -p '[{"op": "replace", "path": "/spec/ingress", "value": []}]' >/dev/null
mode() { weir patch configmap weir-mode --type=merge -p "{\"data\": {\"mode\": \"$1\"}}" >/dev/null; }
mode off
wait_for 30 "the Event" one "ConfigMap/weir-mode" PoliciesNotEnforced "$NS"
expect "of the mode: policies are not enforced" one "ConfigMap/weir-mode Warning: .*the mode is off (it was enforce)" PoliciesNotEnforced "$NS"
mode enforce
wait_for 30 "the Event" one "ConfigMap/weir-mode" PoliciesEnforced "$NS"
expect "and that they are again" one "ConfigMap/weir-mode Normal: .*the mode is enforce (it was off)" PoliciesEnforced "$NS"
wait_for 30 "the Event" one "NetworkPolicy/wrong" CanBeEnforced
expect "of the policy that was put right" one "NetworkPolicy/wrong Normal" CanBeEnforced
expect "controllers may create Events" yes may weir-controller create events.events.k8s.io -A
expect "and not read or change them" eval "no may weir-controller list events.events.k8s.io -A && no may weir-controller patch events.events.k8s.io -A"
expect "agents may not" no may weir-agent create events.events.k8s.io -A
tables 15 <<<"$holds"
all_heard > "$WORK/heard"

step "controllers are killed one at a time, while policies change; packets all the while"
state; cp "$WORK/state.json" "$WORK/watched.json"
"$HERE/probe.py" watch "$WORK/watched.json" --log "$WORK/watch.log" <<<"$holds" >"$WORK/watch.out" &
watcher=$!
# b and d: open and closed again by what is changed meanwhile
b_to_d() {
    if [[ $1 == pass ]]; then
        policy from-b '{podSelector: {matchLabels: {role: b}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {role: d}}}]}]}'
        policy to-d '{podSelector: {matchLabels: {role: d}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {role: b}}}], ports: [{port: 53, protocol: UDP}]}]}'
    else
        kctl -n trial delete networkpolicy from-b to-d >/dev/null
    fi
    changed "$1" "${2:-20}"
}
changed() { table "$1" | tables "$2"; }
table() { printf '53/UDP trial/d\ntrial/b %s\ntrial/a drop\n' "$1"; }
readarray -t victims < <(names controllers)
for verdict in pass drop; do
    victim=${victims[0]} victims=("${victims[@]:1}")
    weir delete pod "$victim" --grace-period=0 --force >/dev/null 2>&1
    log "killed: $victim"
    b_to_d $verdict
    expect "two controllers are ready again" rolled_out deployment/weir-controller 60
done
# (these controllers were not there yet when agents came for the first time)
log "agents came back $(metric weir_controller_joins_total) times, and lacked $(metric weir_controller_resent_items_total) items"
expect "some came back" test "$(metric weir_controller_joins_total)" -gt 0
expect "and nobody was sent a whole slice again" test "$(metric 'weir_controller_joins_total.result="all"')" -eq 0

all_heard > "$WORK/heard-again"
expect "those that came write no Event that is there already, and no other one" cmp "$WORK/heard" "$WORK/heard-again"
expect "they tried to" test "$(metric 'weir_controller_kubernetes_events_total.result="known"')" -gt 0

step "no controller at all: agents start with what they knew"
old=$(names agents node1)
gone_token=$(pod_token "$old")
expect "its token is still taken" says "Welcome node1 " "$gone_token"
weir scale deployment weir-controller --replicas=0 >/dev/null
wait_for 60 "the end of the controllers" none controllers
weir delete pods -l app.kubernetes.io/component=agent >/dev/null
expect "agents are ready again within a minute, without a controller" rolled_out daemonset/weir-agent 60
changed drop 0
weir scale deployment weir-controller --replicas=2 >/dev/null
b_to_d pass 30
expect "two controllers are ready again" rolled_out deployment/weir-controller 60
expect "the token of an agent's pod that is gone: refused (16)" says "refused 16" "$gone_token"

step "the API server starts anew, and policies change"
state
stop fabric kube-apiserver KILL || true
: > "$WORK/checks.log"
table pass | "$HERE/probe.py" check "$WORK/state.json" --log "$WORK/checks.log" || true
count "$WORK/checks.log"
up_apiserver
b_to_d drop 30
expect "no controller was restarted for that" test -z "$(weir get pods -o jsonpath='{.items[?(@.status.containerStatuses[0].restartCount>0)].metadata.name}')"

step "the packets of all this time"
kill "$watcher"; wait "$watcher" || true; watcher=
cat "$WORK/watch.out"
[[ -s $WORK/watch.log ]] || wrong "no packets were sent"
count "$WORK/watch.log"

if in_ns node2 test -e /sys/class/net/cni0; then
    step "a host on which packets between bridged pods pass by the rules: the agent is not ready, and says so"
    sysctl=/proc/sys/net/bridge/bridge-nf-call-iptables
    in_ns node2 sh -c "echo 0 > $sysctl"
    weir delete pod "$(names agents node2)" >/dev/null
    reason() { in_ns node2 curl -sS --max-time 5 http://127.0.0.1:9441/readyz | grep -q bridge-nf-call-iptables; }
    wait_for 30 "the new agent" reason
    in_ns node2 curl -sS http://127.0.0.1:9441/readyz
    expect "/readyz names the sysctl" reason
    not_ready() { [[ $(weir get pod "$(names agents node2)" -o jsonpath='{.status.containerStatuses[0].ready}') == false ]]; }
    expect "its pod is not ready" not_ready
    helm upgrade weir "$CHART" "${VALUES[@]}" --set agent.hostSetup=true >/dev/null
    expect "with agent.hostSetup all agents are ready" rolled_out daemonset/weir-agent 60
    expect "the sysctl is on" in_ns node2 grep -qx 1 "$sysctl"
fi

step "deleted without the hook that withdraws: rules stay until cleanup"
helm uninstall weir --no-hooks --wait >/dev/null
tables 0 <<<"$holds"
for n in $NODES; do expect "weir-agent cleanup on $n" in_ns "$n" "$AGENT" cleanup; done
tables 5 <<'T'
80/TCP        trial/b  trial/c  trial/d
trial/a       pass     pass     pass
trial/d       pass     pass     .
T
the_end
