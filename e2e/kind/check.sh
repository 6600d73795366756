#!/bin/bash
# check.sh [KIND]: kind itself takes what run.sh would give it, and would refuse what is wrong. Without Docker: a program of
# that name says yes to everything until kind wants to run something in a node. KIND: else the one in PATH
# (go install sigs.k8s.io/kind@v0.33.0). Exit code: 0 it does, 1 it does not, 2 it could not be tried.
set -uo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
KIND=$(command -v "${1:-kind}") || { echo "check.sh: no kind in PATH, and none is named" >&2; exit 2; }
scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT
cat > "$scratch/docker" <<'D'
#!/bin/bash
[[ $1 != info ]] || echo '{"CgroupDriver":"systemd","CgroupVersion":"2","MemoryLimit":true,"PidsLimit":true,"CPUShares":true,"SecurityOptions":[]}'
D
chmod +x "$scratch/docker"
bad=0
# said FILE: what kind says of a configuration
said() { PATH=$scratch:$PATH KIND_EXPERIMENTAL_PROVIDER=docker timeout 60 "$KIND" create cluster --name weir-check --config "$1" --kubeconfig "$scratch/kubeconfig" --wait 0s 2>&1; }
taken() { [[ $1 == *'Ensuring node image'* ]]; }

for proxy in nftables iptables; do
    for family in ipv4 ipv6 dual; do
        if ! PROXY_MODE=$proxy IP_FAMILY=$family "$HERE/run.sh" --config > "$scratch/kind.yaml" ||
            ! taken "$(said "$scratch/kind.yaml")"; then
            echo "WRONG kind refuses $proxy, $family"; bad=1
        fi
    done
done
while read -r edit; do
    sed "$edit" "$scratch/kind.yaml" > "$scratch/broken.yaml"
    ! cmp -s "$scratch/kind.yaml" "$scratch/broken.yaml" || { echo "WRONG $edit changes nothing"; bad=1; }
    ! taken "$(said "$scratch/broken.yaml")" || { echo "WRONG kind takes a configuration after $edit"; bad=1; }
done <<'S'
s/kubeProxyMode: .*/kubeProxyMode: magic/
s/ipFamily:/ipFamilie:/
s/ipFamily: .*/ipFamily: ipv5/
s/role: worker/role: workers/
s/v1alpha4/v1alpha9/
S
for setting in PROXY_MODE=ipvs IP_FAMILY=both WORKERS=0; do
    ! env "$setting" "$HERE/run.sh" --config >/dev/null 2>&1 || { echo "WRONG run.sh takes $setting"; bad=1; }
done
exit $bad
