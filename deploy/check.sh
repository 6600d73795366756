#!/bin/bash
# check.sh: what can be said of image and chart without a cluster, and without Docker: helm lint, values that must be
# refused with a word that helps, templates with several sets of values, the plain manifests (manifests.py), the
# Dockerfile against image.py, the SBOM against Cargo.lock. HELM: else the one in PATH. Needs Python 3.11.
# Exit code: 0 all is right, 1 something is not, 2 it could not be tried.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2
HELM=$(command -v "${HELM:-helm}") || { echo "check.sh: no helm in PATH, and none in HELM" >&2; exit 2; }
export HELM
scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT
bad=0
wrong() { printf 'WRONG %s\n' "$*"; bad=1; }
chart() { "$HELM" template weir helm/weir -n weir-system "$@" 2>&1; }

"$HELM" lint --quiet --strict helm/weir || wrong "helm lint"

# values that are refused, and a word that is said
while read -r values words; do
    if said=$(chart --set "$values"); then wrong "taken: $values"; fi
    [[ $said == *"$words"* ]] || wrong "$values: not said: $words: $said"
done <<'V'
mode=aduit '/mode': value must be one of 'enforce', 'audit', 'off'
mode=Off '/mode': value must be one of 'enforce', 'audit', 'off'
mode= '/mode': value must be one of 'enforce', 'audit', 'off'
budgets.namespacePeers=-1 '/budgets/namespacePeers': minimum
budgets.peers=1 '/budgets': additional properties 'peers' not allowed
nothing=1 additional properties 'nothing' not allowed
agent.hostsetup=true '/agent': additional properties 'hostsetup' not allowed
controller.replicas=two '/controller/replicas': got string, want integer
controller.replicas=0 '/controller/replicas': minimum
controller.podDisruptionBudget.maxUnavailable=0 '/controller/podDisruptionBudget/maxUnavailable'
controller.resources.requests.cpu=fast '/controller/resources/requests/cpu'
controller.resources.request.cpu=1 '/controller/resources': additional properties 'request' not allowed
agent.stateDir=var/lib '/agent/stateDir': 'var/lib' does not match pattern
agent.maxUnavailable=0 '/agent/maxUnavailable'
agent.metrics.port=99999 '/agent/metrics/port': maximum
agent.metrics.address=localhost '/agent/metrics/address'
agent.tolerations=all '/agent/tolerations': got string, want array
image.repository=Weir '/image/repository'
image.tag=a:b '/image/tag'
image.pullPolicy=always '/image/pullPolicy': value must be one of
networkPolicy.apiServer.ports={0} '/networkPolicy/apiServer/ports/0': minimum
networkPolicy.apiServer.cidrs={10.0.0.1} '/networkPolicy/apiServer/cidrs/0'
uninstall.timeoutSeconds=soon '/uninstall/timeoutSeconds': got string, want integer
uninstall.ignoreUnreached=maybe '/uninstall/ignoreUnreached': got string, want boolean
tls.secretName=mine tls.secretName and tls.caConfigMap go together
V

# templates: SET, and what must be in the result, or with ! must not
has() {
    local values=$1 what; shift
    chart --set "$values" > "$scratch/out" || { wrong "refused: $values: $(tail -n 1 "$scratch/out")"; return; }
    for what; do
        if [[ $what == !* ]]; then
            ! grep -qF -- "${what#!}" "$scratch/out" || wrong "$values: there is ${what#!}"
        else
            grep -qF -- "$what" "$scratch/out" || wrong "$values: no $what"
        fi
    done
}
has mode=off 'mode: "off"'
has mode=enforce 'capabilities: {drop: [ALL], add: [NET_ADMIN]}' 'readOnlyRootFilesystem: true' 'seccompProfile: {type: RuntimeDefault}' \
    '!hostPID' '!privileged: true' '!NET_RAW' 'kind: PodDisruptionBudget' 'helm.sh/hook: pre-delete' 'maxUnavailable: 0, maxSurge: 1' \
    '--node-selector=kubernetes.io/os=linux' '!--ignore-unreached'
has agent.hostSetup=true 'privileged: true'
has uninstall.ignoreUnreached=true '--ignore-unreached'
has uninstall.withdraw=false '!weir-withdraw'
has controller.hostNetwork=true 'maxUnavailable: 1, maxSurge: 0'
has controller.podDisruptionBudget.enabled=false '!kind: PodDisruptionBudget'
has networkPolicy.enabled=false '!kind: NetworkPolicy'
has 'networkPolicy.apiServer.cidrs={192.0.2.1/32}' 'ipBlock: {cidr: "192.0.2.1/32"}'
has tls.secretName=s,tls.caConfigMap=c '!kind: Secret' 'secretName: "s"' '--tls-cert='
has resourceQuota.enabled=true 'kind: ResourceQuota'
has 'controller.topologySpreadConstraints[0].maxSkew=2' 'maxSkew: 2' '!topology.kubernetes.io/zone'
has agent.nodeSelector.pool=a '--node-selector=kubernetes.io/os=linux,pool=a'

./manifests.py --check || bad=1
python3 check.py || bad=1
exit $bad
