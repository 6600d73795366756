#!/bin/bash
# suite-test.sh [-k] AGENT [CONTROLLER]: e2e/suite.sh on this cluster, as e2e/kind runs it in kind.
#
# CONFORMANCE: weir-conformance; else the one beside AGENT, if there is one. PROFILES: those of its profiles that are
# to be run; else all. NETPOL=1: Kubernetes' own tests of NetworkPolicy, too (build.sh e2e; half an hour).
# Takes up.sh's settings from the environment, but DNS=1 is the default here. -k: uses the cluster that is up, and leaves
# it up. HELM: else the one in PATH. Exit code: 0 all is right, 1 something is not, 2 it could not be tried.
set -euo pipefail
export DNS=${DNS:-1}
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/test-lib.sh"

chart_arguments "$@"
CONFORMANCE=${CONFORMANCE:-$(dirname "$AGENT")/weir-conformance}
WORK=$RUN/suite-test
what=()
if [[ -x $CONFORMANCE ]]; then
    what+=(--conformance "$(realpath "$CONFORMANCE")")
    for profile in ${PROFILES:-}; do what+=(--profile "$profile"); done
fi
if [[ ${NETPOL:-} ]]; then
    [[ -x $BIN/e2e.test ]] || unable "$BIN/e2e.test is missing: run build.sh e2e"
    what+=(--netpol "$BIN/e2e.test")
    # a kernel without SCTP has none in pods, either
    python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)' 2>/dev/null ||
        what+=(--skip 'Feature:SCTPConnectivity')
fi
[[ ${#what[@]} -gt 0 ]] || unable "neither weir-conformance beside the agent nor NETPOL=1"

cluster trial
step "image"
strip -o "$WORK/weir-agent" "$AGENT"; strip -o "$WORK/weir-controller" "$CONTROLLER"
"$HERE/../../deploy/image.py" --for-tests --name weir.test/weir:suite "$WORK/weir.tar" "$WORK/weir-agent" "$WORK/weir-controller"
rc=0
KUBECTL=kubectl HELM=$HELM "$HERE/../suite.sh" --kubeconfig "$RUN/pki/admin.kubeconfig" --in "$HERE/nsh fabric" \
    --load "$HERE/load-image.sh" --archive "$WORK/weir.tar" --image weir.test/weir:suite --reports "$WORK" "${what[@]}" || rc=$?
[[ $rc -ne 2 ]] || unable "see above"
if [[ $rc -eq 0 ]]; then right "suite.sh: all is right"; else wrong "suite.sh"; fi
the_end
