#!/bin/bash
# services-test.sh [-k] [AGENT]: Services and host ports on a real cluster, under policies.
#
# Without a policy, what the forward hooks of the nodes see of each way to a server (services.txt), with packets
# that are sent one after the other; then under each policy of services.py who gets an answer; first with
# kube-proxy in nftables, then in iptables mode, or in PROXY_MODE alone. docs/services.md has the same tables.
# Takes up.sh's other settings from the environment.
# -k: uses the cluster that is up, if one is, with the kube-proxy that it has, and leaves it up.
# Exit code: 0 all is right, 1 something is not, 2 it could not be tried.
set -euo pipefail
MODES=${PROXY_MODE:-nftables iptables}
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/test-lib.sh"

arguments "$@"
WORK=$RUN/services-test
[[ $IP_FAMILY != dual ]] || unable "one family at a time: IP_FAMILY=ipv4 or ipv6"

# a verb of services.py with packets, its checks counted
packets() {
    local log=$WORK/checks.log
    : > "$log"
    "$HERE/services.py" "$@" --log "$log" || [[ -s $log ]] || wrong "no packets could be sent"
    count "$log"
}
# what a load balancer outside would be: its addresses lead to one node each
balancer() {
    local f=$1 n
    for n in 1 2 3 4; do
        in_ns fabric ip route replace "$(pick "$f" "172.30.200.$n" "fd00:172:30:200::$n")" via "$(node_ip "node$(( (n - 1) % 2 + 1 ))" "$f")"
    done
    kctl -n services patch service spread --subresource=status -p "$("$HERE/services.py" status "ipv$f" Cluster)" >/dev/null
    kctl -n services patch service stay --subresource=status -p "$("$HERE/services.py" status "ipv$f" Local)" >/dev/null
}
documented() { [[ $(sed -n '/^| client | way /,/^$/p' "$HERE/../../docs/services.md") == "$("$HERE/services.py" tables)" ]]; }

step "docs/services.md has the tables of services.txt"
expect "it does (services.py tables)" documented

for PROXY_MODE in $MODES; do
    [[ $keep ]] || export PROXY_MODE
    cluster services
    step "a server, its Services and host ports, and clients"
    agents
    "$HERE/services.py" objects "$(<"$IMG/agnhost.name")" | kctl apply -f - >/dev/null
    balancer "$(fams)"
    kctl -n services wait --for=condition=Ready pods --all --timeout=60s >/dev/null
    state

    step "no policy: who gets an answer, and what policies will see"
    packets check "$WORK/state.json" open --within 10
    packets observe "$WORK/state.json"

    for p in $("$HERE/services.py" policies); do
        step "$p: $("$HERE/services.py" about "$p")"
        "$HERE/services.py" policy "$p" "$WORK/state.json" | kctl apply -f - >/dev/null
        packets check "$WORK/state.json" "$p" --within 10
        kctl -n services delete networkpolicy "$p" >/dev/null
    done

    step "all policies deleted: open again"
    packets check "$WORK/state.json" open --within 10
    "$HERE/engine.sh" stop
    [[ ! $keep ]] || break
    "$HERE/down.sh"
done
the_end
