#!/bin/bash
# smoke.sh: two pods per node; connects them pod to pod, over a ClusterIP, from
# nodes and from the fabric, by the address families and names that there are,
# and sees that nothing outside answers.
# shellcheck disable=SC2317,SC2329  # functions are called through check and refuse
set -euo pipefail
. "$(dirname "$0")/lib.sh"
running
bad=0
check() { local what=$1; shift; if "$@" >/dev/null 2>&1; then log "ok    $what"; else log "WRONG $what"; bad=1; fi; }
refuse() { ! "$@"; }
connect() { kctl -n smoke exec "$1" -- /agnhost connect "$2" --timeout=3s --protocol="${3:-tcp}"; }
get() { in_ns fabric curl -gfsS --max-time "${2:-3}" "http://$1"; }
no_name() { [[ $(connect "$@" 2>&1) == *"DNS: "*"no such host"* ]]; }
uses_dns() { kctl -n smoke exec "$1" -- /agnhost dns-server-list | grep -qx "$2"; }

# sees FROM TO: FROM's netexec asks TO's who is asking
sees() {
    local to=${2#[}
    [[ $(get "$1:8080/dial?host=${to%]}&port=8080&protocol=http&request=clientip&tries=1" 5) == *"$1:"* ]]
}

# family F: those of the fields of a line that are addresses of this family,
# each after the line's first field if that is a name
family() {
    awk -v six="$(pick "$1" 0 1)" '{ n = $1 ~ /[.:]/ ? "" : $1 " "
        for (i = 1; i <= NF; i++) if ($i ~ /[.:]/ && ($i ~ /:/) == six) print n (six ? "[" $i "]" : $i) }'
}

set_of_pods() {
    cat <<Y
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: $1, namespace: smoke}
spec:
  selector: {matchLabels: {set: $1}}
  template:
    metadata: {labels: {app: web, set: $1}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: $(<"$IMG/agnhost.name")
        args: [netexec, --http-port=8080, --udp-port=8081]
        readinessProbe: {httpGet: {path: /hostname, port: 8080}, periodSeconds: 1}
Y
}

# service NAME POLICY FAMILIES
service() {
    cat <<Y
---
apiVersion: v1
kind: Service
metadata: {name: $1, namespace: smoke}
spec:
  selector: {app: web}
  ipFamilyPolicy: $2
  ipFamilies: [$3]
  ports: [{port: 80, targetPort: 8080}]
Y
}

kctl delete namespace smoke --ignore-not-found >/dev/null
{
    printf 'apiVersion: v1\nkind: Namespace\nmetadata: {name: smoke}\n'
    set_of_pods web; set_of_pods peer
    service web PreferDualStack ""
    for f in $(fams); do service "web$f" SingleStack "IPv$f"; done
} | kctl apply -f - >/dev/null
for d in web peer; do kctl -n smoke rollout status ds/$d --timeout=90s >/dev/null; done
all=$(kctl -n smoke get pods -l app=web -o jsonpath='{range .items[*]}{.metadata.name}{range .status.podIPs[*]} {.ip}{end}{"\n"}{end}')
svcs=$(kctl -n smoke get service web -o jsonpath='{.spec.clusterIPs[*]}')
api=$(first svc_ip 1)
for f in $(fams); do
    mapfile -t pods < <(family "$f" <<<"$all")
    svc=$(family "$f" <<<"$svcs")
    [[ ${#pods[@]} -gt 1 && -n $svc ]] || die "no addresses of IPv$f: $all $svcs"
    for a in "${pods[@]}"; do
        for b in "${pods[@]}"; do
            check "${a% *} -> ${b#* }:8080" connect "${a% *}" "${b#* }:8080"
        done
        check "${a% *} -> service $svc" connect "${a% *}" "$svc:80"
        check "${a% *} has no way out" refuse connect "${a% *}" "$(pick "$f" 192.0.2.1 '[2001:db8::1]'):80"
        check "fabric -> ${a#* }" get "${a#* }:8080/hostname"
        # without NAT, a pod sees the other's own address
        for b in "${pods[@]}"; do
            [[ $a != "$b" ]] || continue
            check "${b% *} sees ${a% *} as ${a#* }" sees "${a#* }" "${b#* }"
        done
    done
    for n in $NODES; do check "$n -> service $svc" in_ns "$n" curl -gfsS --max-time 3 "http://$svc/hostname"; done
done
for a in "${pods[@]}"; do
    p=${a% *}
    check "$p -> API server service" connect "$p" "$(host "$api"):443"
    [[ $DNS != 0 ]] || continue
    if [[ $DNS == 1 ]]; then dns=$(first svc_ip 10); else dns=$(first local_dns); fi
    check "$p asks $dns" uses_dns "$p" "$dns"
    for f in $(fams); do
        check "$p -> web$f by name" connect "$p" "web$f:80"
        check "$p -> web$f.smoke.svc.cluster.local" connect "$p" "web$f.smoke.svc.cluster.local:80"
        check "$p -> kube-dns over IPv$f" connect "$p" "$(host "$(svc_ip 10 "$f")"):53"
    done
    check "$p -> the API server by name" connect "$p" kubernetes.default:443
    check "$p knows no name outside" no_name "$p" host.example.net:80
done
kctl delete namespace smoke >/dev/null
exit $bad
