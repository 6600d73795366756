#!/bin/bash
# policy-test.sh [-k] [AGENT]: Weir on a real cluster, from policies to packets.
#
# Starts the cluster, runs AGENT (a weir-agent; or $WEIR_AGENT) on every node, and sees with
# packets that policies do what they say: those of policy-examples against their own tables;
# kubelet probes, own node and other node under a deny-all; edits, relabelled and re-created
# pods; restart, end and cleanup of the agent.  Takes up.sh's settings from the environment.
# EXAMPLES is a pattern of the examples' folders (default: the first five, named ports, port ranges).
# -k: uses the cluster that is up, if one is, and leaves it up.
# Exit code: 0 all is right, 1 something is not, 2 it could not be tried.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

. "$(dirname "$0")/test-lib.sh"

arguments "$@"
# Those that match, but for those that say that they are for the lab alone. All of them at once
# are some 200 containers: EXAMPLES='*' is for a machine that has nothing else to do.
EXAMPLES_MATCHING=${EXAMPLES:-0[1-589]-*}
EXAMPLES=()
# shellcheck disable=SC2231  # it is a pattern
for d in "$(realpath "$HERE/../../policy-examples")"/$EXAMPLES_MATCHING/; do
    [[ -e $d/cluster.yaml ]] || unable "no such example: $EXAMPLES_MATCHING"
    grep -q '^# Lab only: ' "$d/cluster.yaml" || EXAMPLES+=("${d%/}")
done
WORK=$RUN/policy-test                   # states, tables, results

trial_pods() {
    printf 'apiVersion: v1\nkind: Namespace\nmetadata: {name: trial}\n'
    trial_pod a node1 "$HTTP"; trial_pod b node1 "$TCP"; trial_pod c node2 "$EXEC"; trial_pod d node2 "$HTTP"
}
example_pods() {
    cat "${EXAMPLES[@]/%//cluster.yaml}" | kctl create --dry-run=client -o json -f - |
        "$HERE/example-pods.py" "$IP_FAMILY" "$(<"$IMG/agnhost.name")" "${EXAMPLES[@]}"
}
ready() { kctl wait --for=condition=Ready pods -A -l weir.test/pod --timeout="$1s" >/dev/null; }
sum() { awk '{ for (i = 1; i <= NF; i++) n += $i } END { print n + 0 }'; }
# failed probes so far, of the pods that are there all the time
unhealthy() {
    kctl -n trial get events --field-selector reason=Unhealthy -o jsonpath='{range .items[*]}{.involvedObject.name} {.count}{"\n"}{end}' |
        sed -n 's/^[bcd] //p' | sum
}
# pods that were restarted so far, and how often
restarted() {
    kctl get pods -A -l weir.test/pod -o jsonpath='{range .items[*]}{.metadata.namespace}/{.metadata.name} {.status.containerStatuses[*].restartCount}{"\n"}{end}' |
        grep -v '^[^ ]*\( 0\)*$' || true
}
all_ready() { ! kctl get pods -A -l weir.test/pod -o jsonpath='{.items[*].status.conditions[?(@.type=="Ready")].status}' | grep -q False; }
equal() { [[ $1 == "$2" ]]; }
differ() { [[ $1 && $2 && $1 != "$2" ]]; }
resident() { ps -o rss= --ppid "$(<"$RUN/$1/engine.pid")"; }

# the rules of a node that are not Weir's
foreign_rules() {
    local family name
    in_ns "$1" nft list tables | while read -r _ family name; do
        [[ $name == weir ]] || in_ns "$1" nft -s list table "$family" "$name" </dev/null 2>/dev/null
    done
    for family in iptables ip6tables; do in_ns "$1" "$family-save" 2>/dev/null; done | sed '/^#/d; s/\[[0-9]*:[0-9]*\]//'
}
has_weir() { in_ns "$1" nft list tables | grep -q ' weir$'; }
no_weir() { ! has_weir "$1"; }

cluster trial

step "agents and pods"
agents
trial_pods | kctl apply -f - >/dev/null
example_pods > "$WORK/pods.json"
kctl apply --server-side -f "$WORK/pods.json" >/dev/null
ready 120

step "before any policy: every pod reaches the others"
tables 10 <<<open
expect "agnhost inside trial/a finds the same" kctl -n trial exec a -- /agnhost connect "$(host "$(address c)"):80" --timeout=3s
tables 0 <<'T'
80/TCP        trial/a  trial/b  trial/c  trial/d
trial/a       pass     pass     pass     pass     # itself too, by its Service
trial/d       pass     pass     pass     pass
node1         pass     pass     pass     pass
node2         pass     pass     pass     pass
10250/TCP     node1    node2
trial/a       pass     pass
trial/c       pass     pass
T

for d in "${EXAMPLES[@]}"; do
    step "policy-examples/$(basename "$d")"
    kctl apply -f "$d/policies.yaml" >/dev/null
    tables 15 < "$d/expected.txt"
    kctl delete -f "$d/policies.yaml" >/dev/null
done
step "all policies deleted: open again"
tables 15 <<<open

step "a namespace that denies all: own node and itself alone (N71, U3, U6)"
unhealthy=$(unhealthy) restarted=$(restarted)
policy deny-all '{podSelector: {}, policyTypes: [Ingress, Egress]}'
denied_since=$SECONDS
tables 15 <<'T'
80/TCP        trial/a  trial/b  trial/c  trial/d  other/server
trial/a       pass     drop     drop     drop     drop
trial/b       drop     pass     drop     drop     drop
trial/c       drop     drop     pass     drop     drop
trial/d       drop     drop     drop     pass     drop
other/server  drop     drop     drop     drop     .
node1         pass     pass     drop     drop     pass
node2         drop     drop     pass     pass     pass
53/UDP        trial/a  trial/b  trial/c  trial/d
trial/a       .        drop     drop     drop
trial/c       drop     drop     .        drop
other/server  drop     drop     drop     drop
node1         pass     pass     drop     drop
node2         drop     drop     pass     pass
# the kubelets': of the pods' own node, and of the other
10250/TCP     node1    node2
trial/a       drop     drop
trial/c       drop     drop
other/server  pass     pass
T

step "a pod created under it becomes ready, and is denied"
trial_pod e node2 "$TCP" | kctl apply -f - >/dev/null
expect "trial/e is ready within 30 s" kctl -n trial wait --for=condition=Ready pod/e --timeout=30s
tables 5 <<'T'
80/TCP        trial/e  trial/c  other/server
trial/e       .        drop     drop
trial/c       drop     .        drop
other/server  drop     drop     .
node1         drop     drop     pass
node2         pass     pass     pass
T

step "a policy edited live: a may reach c"
to_c() { policy to-c "{podSelector: {matchLabels: {role: c}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {role: $1}}}], ports: [{port: 80}]}]}"; }
from_a='80/TCP        trial/b  trial/c  trial/d
trial/a       drop     pass     drop
trial/b       .        drop     drop
trial/d       drop     drop     .
other/server  drop     drop     drop
53/UDP        trial/b  trial/c  trial/d
trial/a       drop     drop     drop'
policy from-a '{podSelector: {matchLabels: {role: a}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {role: c}}}]}]}'
to_c a
tables 10 <<<"$from_a"
step "edited: c is for d now, which may not call"
to_c d
tables 10 <<<"${from_a/pass/drop}"
step "edited back"
to_c a
tables 10 <<<"$from_a"

step "a pod relabelled: b has the role of a"
kctl -n trial label pod b role=a --overwrite >/dev/null
tables 10 <<'T'
80/TCP        trial/a  trial/b  trial/c  trial/d
trial/a       .        drop     pass     drop
trial/b       drop     .        pass     drop
trial/d       drop     drop     drop     .
T
step "and its own again"
kctl -n trial label pod b role=b --overwrite >/dev/null
tables 10 <<<"$from_a"

step "a pod re-created: same name, another address"
old=$(address a)
kctl -n trial delete pod a >/dev/null
trial_pod a node1 "$HTTP" | kctl apply -f - >/dev/null
expect "trial/a is ready within 30 s" kctl -n trial wait --for=condition=Ready pod/a --timeout=30s
expect "its address is another one" differ "$old" "$(address a)"
tables 10 <<<"$from_a"

step "the agent ends, starts, is killed, starts; packets all the while"
state
"$HERE/probe.py" watch "$WORK/state.json" --log "$WORK/watch.log" <<<"$from_a" >"$WORK/watch.out" &
watcher=$!
d_to_e='80/TCP        trial/e
trial/a       drop
trial/d       pass
other/server  drop'
"$HERE/engine.sh" stop
log "ended: its rules stay in force"
tables 0 <<<"$from_a"
policy to-e '{podSelector: {matchLabels: {role: e}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {role: d}}}]}]}'
policy from-d '{podSelector: {matchLabels: {role: d}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {role: e}}}]}]}'
agents
log "started: what was allowed meanwhile comes into force"
tables 15 <<<"$d_to_e"
"$HERE/engine.sh" kill
log "killed: its rules stay in force"
tables 0 <<<"$d_to_e"
kctl -n trial delete networkpolicy from-d >/dev/null
agents
log "started: what was denied meanwhile comes into force"
tables 15 <<<"${d_to_e/pass/drop}"
kill "$watcher"; wait "$watcher" || true; watcher=
log "the packets of all this time"
cat "$WORK/watch.out"
[[ -s $WORK/watch.log ]] || wrong "no packets were sent"
count "$WORK/watch.log"

if [[ $DNS != 0 ]]; then
    step "names, under a policy that denies all egress but DNS ($([[ $DNS == 1 ]] && echo CoreDNS || echo a node-local cache))"
    trial_pod q node1 "$HTTP" | sed 's/dnsPolicy: Default/dnsPolicy: ClusterFirst/' | kctl apply -f - >/dev/null
    expect "trial/q is ready within 30 s" kctl -n trial wait --for=condition=Ready pod/q --timeout=30s
    # the name is known and the connection is denied, or already the question is
    asks() { timeout 20 "$HERE/kubectl" -n trial exec q -- /agnhost connect kubernetes.default:443 --timeout=2s 2>&1 || true; }
    resolves() { [[ $(asks) == *TIMEOUT* ]]; }
    soon() { for _ in 1 2 3 4 5; do ! "$@" || return 0; sleep 1; done; return 1; }
    refuse() { ! "$@"; }
    expect "no name is known under the deny-all" refuse resolves
    kctl apply -f - >/dev/null <<'Y'
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: trial, name: dns-by-label}
spec:
  podSelector: {matchLabels: {role: q}}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]
    ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
Y
    if [[ $DNS == 1 ]]; then
        expect "names are known, with the label of kube-dns allowed" soon resolves
    else
        sleep 2
        # the cache is a process of the node: to policy an address, which no label means
        expect "no name is known with the label of kube-dns allowed: the cache is not a pod" refuse resolves
        policy dns-by-address "{podSelector: {matchLabels: {role: q}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: $(first local_dns)/$([[ $IP_FAMILY == ipv6 ]] && echo 128 || echo 32)}}], ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}]}"
        expect "names are known, with the address of the cache allowed" soon resolves
        # the cache has the ClusterIP of kube-dns as well: no pod is behind it here, it is the node's
        cluster_ip=$(first svc_ip 10)
        reaches() { timeout 20 "$HERE/kubectl" -n trial exec q -- /agnhost connect "$(host "$cluster_ip"):53" --timeout=2s; }
        expect "the ClusterIP of kube-dns, which the cache has, is closed" refuse reaches
        policy dns-by-cluster-ip "{podSelector: {matchLabels: {role: q}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: $cluster_ip/$([[ $IP_FAMILY == ipv6 ]] && echo 128 || echo 32)}}], ports: [{port: 53, protocol: TCP}]}]}"
        expect "it is open, with its address allowed" soon reaches
        untracked() { in_ns node1 nft list table inet node-local-dns | grep -q "daddr .* dport 53 counter packets [1-9].* notrack"; }
        expect "what pods ask the cache is not tracked" untracked
    fi
fi

step "--pod-to-own-node=allow: a pod reaches its own node, and nothing else (U6)"
"$HERE/engine.sh" stop
"$HERE/engine.sh" start "$AGENT" --node '{node}' --kubeconfig "$RUN/pki/admin.kubeconfig" --pod-to-own-node allow
tables 15 <<'T'
10250/TCP     node1    node2
trial/a       pass     drop
trial/c       drop     pass
80/TCP        trial/b  trial/d  other/server
trial/a       drop     drop     drop
T
"$HERE/engine.sh" stop
agents
tables 15 <<'T'
10250/TCP     node1    node2
trial/a       drop     drop
trial/c       drop     drop
T

step "kubelet probes under the deny-all"
while (( SECONDS - denied_since < 12 )); do sleep 0.5; done      # two failures in a row take 8 s
expect "all pods are ready" all_ready
now=$(restarted)
expect "not one of them was restarted${now:+ (so far: $now; before the deny-all: ${restarted:-none})}" equal "$now" "$restarted"
expect "not one probe of b, c and d (tcp, exec, http) failed in $((SECONDS - denied_since)) s" equal "$(unhealthy)" "$unhealthy"

step "cleanup removes what is Weir's, and nothing else"
for n in $NODES; do log "$n: the agent has $(resident "$n") KiB resident"; done
"$HERE/engine.sh" stop
for n in $NODES; do
    expect "$n has Weir's tables" has_weir "$n"
    foreign_rules "$n" > "$WORK/$n.before"
    expect "weir-agent cleanup on $n" in_ns "$n" "$AGENT" cleanup
    foreign_rules "$n" > "$WORK/$n.after"
    expect "$n has none of Weir's tables" no_weir "$n"
    expect "$n has all others ($(grep -c . "$WORK/$n.before") lines) as they were" cmp "$WORK/$n.before" "$WORK/$n.after"
    expect "cleanup on $n, with nothing there" in_ns "$n" "$AGENT" cleanup
done
tables 5 <<<open
the_end
