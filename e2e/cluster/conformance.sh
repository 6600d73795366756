#!/bin/bash
# conformance.sh [-k] AGENT [ARGUMENT...]: the conformance suite (e2e/conformance) against the cluster.
#
# Starts the cluster, runs AGENT (a weir-agent) on every node, and weir-conformance, which is beside it or is
# WEIR_CONFORMANCE, with all profiles and what else is given as ARGUMENT.  Then the agents end, their rules are
# deleted, and the suite must see that: one that cannot fail proves nothing.
# Takes up.sh's settings from the environment.
# -k: uses the cluster that is up, if one is, and leaves it up.
# Exit code: 0 all is right, 1 something is not, 2 it could not be tried.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/test-lib.sh"

arguments "$@"
[[ ${1:-} != -k ]] || shift
[[ $# -eq 0 ]] || shift
SUITE=${WEIR_CONFORMANCE:-$(dirname "$AGENT")/weir-conformance}
[[ -x $SUITE ]] || unable "$SUITE is not an executable (cargo build -p weir-conformance)"
WORK=$RUN/conformance

# the suite, in the fabric's network: nothing of it knows of this cluster's insides
suite() {
    nsenter -t "$(<"$RUN/fabric/init.pid")" -n -- "$SUITE" run --kubeconfig "$RUN/pki/admin.kubeconfig" \
        --image "$(<"$IMG/agnhost.name")" "$@"
}
restart="$(printf 'export WEIR_CLUSTER_HOME=%q; cd %q' "$WEIR_CLUSTER_HOME" "$HERE")"
for how in stop kill; do
    restart+="; ./engine.sh $how && ./engine.sh start $(printf '%q ' "$AGENT") --node '{node}' --kubeconfig $(printf %q "$RUN/pki/admin.kubeconfig") || exit 1"
done

cluster conformance
step "agents"
agents

step "weir-conformance, all profiles"
code=0
suite --strict --restart-command "$restart" --junit "$WORK/junit.xml" --json "$WORK/report.json" "$@" </dev/null 2>&1 |
    tee "$WORK/report.txt" || code=$?
read -r good bad unable < <(sed -nE 's/^([0-9]+) passed, ([0-9]+) failed, .* ([0-9]+) unable;.*/\1 \2 \3/p' "$WORK/report.txt") || true
passed=$((passed + ${good:-0})) failed=$((failed + ${bad:-0} + ${unable:-0}))
[[ ${good:-} && ($code == 0 || $failed -gt 0) ]] || wrong "weir-conformance ended with $code"

step "and without agents and their rules it fails"
"$HERE/engine.sh" stop
for n in $NODES; do in_ns "$n" nft delete table inet weir; done
code=0
suite --profile netpol --case deny-ingress --random 0 --parallel 1 --settle 1 </dev/null >"$WORK/none.txt" 2>&1 || code=$?
expect "its exit code is 1" test "$code" -eq 1
expect "it names what passed" grep -q 'observed answered by' "$WORK/none.txt"
expect "it left no namespace behind" test -z "$(kctl get namespaces -l conformance.weir.dev/run -o name)"
the_end
