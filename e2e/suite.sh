#!/bin/bash
# suite.sh: what comes after a cluster exists: image, chart, tests, uninstallation. kind and e2e/cluster use it alike.
#
#   suite.sh --kubeconfig FILE [--in 'PREFIX'] [--load 'COMMAND'] [--archive FILE] --image REPOSITORY:TAG
#            [--set VALUES]... [--conformance PROGRAM [--profile PROFILE]...] [--netpol E2E.TEST [--skip REGEX]]
#            [--reports DIR] [--keep]
#
#   --in           what kubectl, helm and the tests are run with: a prefix, such as 'e2e/cluster/nsh fabric'
#   --load         gives all nodes the image of --archive, which is its last argument
#   --conformance  weir-conformance; all profiles, or those that are named
#   --netpol       Kubernetes' own end-to-end tests (e2e.test): those of its suite Netpol, but what --skip matches
#   --reports      JUnit files, and logs after a failure (default: ./reports)
#   --keep         leaves Weir installed
#
# Needs kubectl and helm in PATH (or in KUBECTL, HELM). Exit code: 0 all is right, 1 something is not, 2 it could not
# be tried.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
NS=weir-system
die() { echo "suite.sh: $*" >&2; exit 2; }
step() { printf '\n%s == %s\n' "$(date +%T)" "$*"; }

kubeconfig='' prefix=() load=() archive='' image='' values=() conformance='' profiles=() netpol='' skip='' reports=reports keep=''
while [[ $# -gt 0 ]]; do
    option=$1
    case $option in
        --keep) keep=1; shift; continue ;;
        --kubeconfig | --in | --load | --archive | --image | --set | --conformance | --profile | --netpol | --skip | --reports)
            [[ $# -ge 2 ]] || die "$option what?" ;;
        *) die "no option \"$option\": see the head of this script" ;;
    esac
    case $option in
        --kubeconfig) kubeconfig=$2 ;;
        --in) read -r -a prefix <<<"$2" ;;
        --load) read -r -a load <<<"$2" ;;
        --archive) archive=$2 ;;
        --image) image=$2 ;;
        --set) values+=(--set "$2") ;;
        --conformance) conformance=$2 ;;
        --profile) profiles+=(--profile "$2") ;;
        --netpol) netpol=$2 ;;
        --skip) skip=$2 ;;
        --reports) reports=$2 ;;
    esac
    shift 2
done
[[ -r $kubeconfig ]] || die "--kubeconfig: cannot read \"$kubeconfig\""
[[ $image == *:* ]] || die "--image: REPOSITORY:TAG, and not \"$image\""
[[ -z $archive || -r $archive ]] || die "--archive: cannot read $archive"
[[ -z $archive || ${#load[@]} -gt 0 ]] || die "--archive without --load: how do nodes get the image?"
for program in "$conformance" "$netpol"; do [[ -z $program || -x $program ]] || die "$program is not an executable"; done
mkdir -p "$reports"; reports=$(realpath "$reports")
KUBECTL=${KUBECTL:-kubectl} HELM=${HELM:-helm}

in_cluster() { ${prefix[@]+"${prefix[@]}"} "$@"; }
kubectl() { in_cluster "$KUBECTL" --kubeconfig "$kubeconfig" "$@"; }
helm() { in_cluster "$HELM" --kubeconfig "$kubeconfig" -n "$NS" "$@"; }

failed=()
# try WHAT COMMAND...: goes on after a failure, and remembers it
try() { local what=$1; shift; step "$what"; "$@" || { echo "FAILED: $what"; failed+=("$what"); }; }

logs() {
    local pod
    kubectl get pods,nodes,networkpolicies -A -o wide > "$reports/objects.txt" 2>&1 || true
    kubectl get events -A --sort-by=.lastTimestamp > "$reports/events.txt" 2>&1 || true
    kubectl -n "$NS" get configmaps weir-mode weir-status -o yaml > "$reports/weir.yaml" 2>&1 || true
    for pod in $(kubectl -n "$NS" get pods -o name 2>/dev/null); do
        kubectl -n "$NS" describe "$pod" > "$reports/${pod##*/}.txt" 2>&1 || true
        kubectl -n "$NS" logs --all-containers --prefix "$pod" > "$reports/${pod##*/}.log" 2>&1 || true
    done
    echo "logs: $reports"
}

install() {
    helm upgrade --install weir "$ROOT/deploy/helm/weir" --create-namespace --set "image.repository=${image%:*},image.tag=${image##*:}" \
        ${archive:+--set image.pullPolicy=Never} ${values[@]+"${values[@]}"} >/dev/null &&
        kubectl label --overwrite namespace "$NS" pod-security.kubernetes.io/enforce=privileged &&
        kubectl -n "$NS" rollout status deployment/weir-controller --timeout=180s &&
        kubectl -n "$NS" rollout status daemonset/weir-agent --timeout=180s
}

uninstall() {
    helm uninstall weir --wait
    [[ -z $(kubectl -n "$NS" get configmaps,secrets,daemonsets,deployments -o name | grep weir) ]]
}

[[ -z $archive ]] || { step "the image, to all nodes"; "${load[@]}" "$archive" >/dev/null || die "the image cannot be loaded"; }
try "Weir is installed, and ready" install
if [[ ${#failed[@]} -eq 0 && $conformance ]]; then
    try "the conformance suite" in_cluster "$conformance" run --kubeconfig "$kubeconfig" \
        ${profiles[@]+"${profiles[@]}"} --junit "$reports/conformance.xml" --json "$reports/conformance.json"
fi
if [[ ${#failed[@]} -eq 0 && $netpol ]]; then
    # the provider says only that there are no machines to be made or asked over ssh
    upstream() {
        in_cluster "$netpol" --kubeconfig "$kubeconfig" --provider=skeleton --ginkgo.no-color --ginkgo.v \
            --ginkgo.focus='\[sig-network\] Netpol' ${skip:+--ginkgo.skip="$skip"} --ginkgo.fail-on-empty \
            --report-dir="$reports" --report-prefix=netpol- > "$reports/netpol.log" 2>&1 || { grep -a 'FAIL\]' "$reports/netpol.log" | sort -u; return 1; }
        grep -aE '^(Ran |SUCCESS!)' "$reports/netpol.log"
    }
    try "Kubernetes' own tests of NetworkPolicy" upstream
fi
[[ ${#failed[@]} -eq 0 ]] || logs
[[ $keep ]] || try "Weir is uninstalled" uninstall
step "reports: $reports"
[[ ${#failed[@]} -eq 0 ]] || { printf 'FAILED     %s\n' "${failed[@]}"; exit 1; }
echo "all is right"
