#!/bin/bash
# run.sh: a cluster in kind with its own CNI plugin, Weir in it, and e2e/suite.sh: the conformance suite, Kubernetes' own
# tests of NetworkPolicy, uninstallation. The cluster is deleted at the end, and its logs are collected after a failure.
#
#   e2e/kind/run.sh                    needs docker, kind, kubectl, helm, cargo and curl
#   e2e/kind/run.sh --config           prints kind's configuration, and needs nothing
#
# Settings, from the environment:
#   NODE_IMAGE           kindest/node:VERSION[@DIGEST] (default: kind's own choice)
#   PROXY_MODE           nftables | iptables (default: nftables)
#   IP_FAMILY            ipv4 | ipv6 | dual (default: ipv4)
#   WORKERS              nodes beside the control plane (default: 2)
#   PROFILES             of weir-conformance; all if none is given
#   NETPOL=0             without Kubernetes' own tests
#   IMAGE, ARCHIVE       an image that is there already; else it is made of this tree (deploy/image.py)
#   CLUSTER              the cluster's name (default: weir)
#   REPORTS              JUnit files and logs (default: ./reports)
#   KEEP=1               leaves the cluster
# Exit code: 0 all is right, 1 something is not, 2 it could not be tried.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
CLUSTER=${CLUSTER:-weir} PROXY_MODE=${PROXY_MODE:-nftables} IP_FAMILY=${IP_FAMILY:-ipv4} WORKERS=${WORKERS:-2}
REPORTS=${REPORTS:-reports}
die() { echo "run.sh: $*" >&2; exit 2; }
say() { printf '\n%s == %s\n' "$(date +%T)" "$*"; }

case $PROXY_MODE in nftables | iptables) ;; *) die "PROXY_MODE: nftables or iptables, and not \"$PROXY_MODE\"" ;; esac
case $IP_FAMILY in ipv4 | ipv6 | dual) ;; *) die "IP_FAMILY: ipv4, ipv6 or dual, and not \"$IP_FAMILY\"" ;; esac
[[ $WORKERS =~ ^[1-9]$ ]] || die "WORKERS: 1 to 9, and not \"$WORKERS\""

config() {
    cat <<Y
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking:
  ipFamily: $IP_FAMILY
  kubeProxyMode: $PROXY_MODE
nodes:
- role: control-plane
Y
    local _
    for _ in $(seq "$WORKERS"); do echo '- role: worker'; done
}
case ${1:-} in
    --config) config; exit ;;
    '') ;;
    *) die "no option \"$1\"" ;;
esac

for program in docker kind kubectl helm cargo curl; do command -v "$program" >/dev/null || die "$program is missing"; done
scratch=$(mktemp -d) created=''
mkdir -p "$REPORTS"; REPORTS=$(realpath "$REPORTS")
# shellcheck disable=SC2317,SC2329  # called by a trap
finish() {
    local code=$? node
    trap - EXIT
    if [[ $created && $code -ne 0 ]]; then
        say "logs of the nodes"
        kind export logs "$REPORTS/kind" --name "$CLUSTER" >/dev/null 2>&1 || true
        for node in $(kind get nodes --name "$CLUSTER" 2>/dev/null); do
            docker exec "$node" nft list ruleset > "$REPORTS/$node.nft" 2>&1 || true
        done
    fi
    [[ -z $created || ${KEEP:-} ]] || kind delete cluster --name "$CLUSTER" || true
    rm -rf "$scratch"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "programs"
cd "$ROOT"
target=$(cargo metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
packages=(-p weir-conformance)
[[ ${ARCHIVE:-} ]] || packages+=(-p weir-agent -p weir-controller)
cargo build --release --locked "${packages[@]}"
IMAGE=${IMAGE:-localhost/weir:kind}
if [[ -z ${ARCHIVE:-} ]]; then
    ARCHIVE=$scratch/weir.tar
    deploy/image.py --name "$IMAGE" "$ARCHIVE" "$target/release/weir-agent" "$target/release/weir-controller"
fi

say "the cluster: control plane and $WORKERS workers, kube-proxy $PROXY_MODE, $IP_FAMILY"
config > "$scratch/kind.yaml"
created=1
kind create cluster --name "$CLUSTER" --config "$scratch/kind.yaml" ${NODE_IMAGE:+--image "$NODE_IMAGE"} \
    --kubeconfig "$scratch/kubeconfig" --wait 180s || die "kind cannot make the cluster"
export KUBECONFIG=$scratch/kubeconfig

# kind's CNI plugin has an engine for NetworkPolicy in its daemon. What it has set up for pods and routes stays without
# it; its table would keep handing packets to nobody.
say "kind's own engine is turned off"
kubectl -n kube-system patch daemonset kindnet --type merge \
    -p '{"spec":{"template":{"spec":{"nodeSelector":{"weir.test/no-node":"true"}}}}}'
kubectl -n kube-system wait --for=delete pods -l app=kindnet --timeout=120s
for node in $(kind get nodes --name "$CLUSTER"); do
    docker exec "$node" nft delete table inet kindnet-network-policies 2>/dev/null || true
    if docker exec "$node" nft list ruleset | grep -q 'queue .*to'; then die "$node still hands packets to another engine"; fi
done

what=(--conformance "$target/release/weir-conformance")
for profile in ${PROFILES:-}; do what+=(--profile "$profile"); done
if [[ ${NETPOL:-1} != 0 ]]; then
    version=$(kubectl version -o json | sed -n '/"serverVersion"/,$ s/.*"gitVersion": "\(v[0-9.]*\)".*/\1/p')
    [[ $version ]] || die "the API server does not say its version"
    arch=$(uname -m); arch=${arch/x86_64/amd64}; arch=${arch/aarch64/arm64}
    say "Kubernetes' own tests, of $version"
    archive=kubernetes-test-linux-$arch.tar.gz
    for file in "$archive" "$archive.sha256"; do
        curl --proto '=https' --tlsv1.2 -fsSL --retry 3 -o "$scratch/$file" "https://dl.k8s.io/$version/$file"
    done
    echo "$(<"$scratch/$archive.sha256")  $scratch/$archive" | sha256sum --check --quiet
    tar -xzf "$scratch/$archive" -C "$scratch" --strip-components=3 kubernetes/test/bin/e2e.test
    what+=(--netpol "$scratch/e2e.test")
    grep -q '^sctp ' /proc/modules || sudo -n modprobe sctp 2>/dev/null || what+=(--skip 'Feature:SCTPConnectivity')
fi
"$ROOT/e2e/suite.sh" --kubeconfig "$scratch/kubeconfig" --load "kind load image-archive --name $CLUSTER" \
    --archive "$ARCHIVE" --image "$IMAGE" --reports "$REPORTS" "${what[@]}"
