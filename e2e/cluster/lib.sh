# shellcheck shell=bash disable=SC2034  # sourced: what is set here is used there
# Settings and functions shared by the scripts of the cluster.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# What is built and what runs lies outside of the scripts' folder.
WEIR_CLUSTER_HOME=${WEIR_CLUSTER_HOME:-/opt/weir-cluster}
case $WEIR_CLUSTER_HOME in /etc/*|/var/*|/run/*) echo "WEIR_CLUSTER_HOME: the nodes have their own /etc, /var and /run" >&2; exit 1 ;; esac
BIN=$WEIR_CLUSTER_HOME/bin; IMG=$WEIR_CLUSTER_HOME/img; RUN=$WEIR_CLUSTER_HOME/run

NODES=${NODES:-"node1 node2"}         # names must be nodeN, N = 1..9
CNI_PLUGIN=${CNI_PLUGIN:-ptp}         # ptp | bridge (per node: CNI_PLUGIN_node1=bridge)
PROXY_MODE=${PROXY_MODE:-nftables}    # nftables | iptables
IP_FAMILY=${IP_FAMILY:-ipv4}          # ipv4 | ipv6 | dual (IPv4 first)
DNS=${DNS:-0}                         # 0 | 1 (CoreDNS as kube-dns) | nodelocal (a cache on each node as well)
FABRIC=172.30.0                       # fabric .1 (API server), nodeN .1N
POD_CIDR=10.244.0.0/16                # nodeN: 10.244.N.0/24
SVC_CIDR=10.96.0.0/16
FABRIC6=fd00:172:30:                  # /64: fabric ::1, nodeN ::1N
POD_CIDR6=fd00:10:244::/48            # nodeN: fd00:10:244:N::/64
SVC_CIDR6=fd00:10:96::/112
CGROUP=${CGROUP:-weir-cluster}         # cgroup subtree of all the pods
CGROUP_MEMORY=${CGROUP_MEMORY:-8G}

CLEAN_ENV=(env -i HOME=/root LANG=C "WEIR_CLUSTER_HOME=$WEIR_CLUSTER_HOME" "PATH=$BIN:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")

log() { printf '%s %s\n' "$(date +%T)" "$*"; }
die() { log "ERROR: $*" >&2; exit 1; }
num() { printf '%s' "${1#node}"; }
fams() { case $IP_FAMILY in ipv4) echo 4 ;; ipv6) echo 6 ;; dual) echo 4 6 ;; *) die "IP_FAMILY: ipv4, ipv6 or dual" ;; esac; }
# pick FAMILY V4 V6.  Of those after it, the last argument is the family, 4 or 6.
pick() { if [[ $1 == 6 ]]; then printf '%s' "$3"; else printf '%s' "$2"; fi; }
fabric_ip() { pick "$1" "$FABRIC.1" "$FABRIC6:1"; }
fabric_len() { pick "$1" 24 64; }
node_ip() { pick "${2:-4}" "$FABRIC.1$(num "$1")" "$FABRIC6:1$(num "$1")"; }
node_pods() { pick "$2" "10.244.$(num "$1").0/24" "fd00:10:244:$(num "$1")::/64"; }
pod_cidr() { pick "$1" "$POD_CIDR" "$POD_CIDR6"; }
svc_cidr() { pick "$1" "$SVC_CIDR" "$SVC_CIDR6"; }
svc_ip() { pick "$2" "${SVC_CIDR%.*}.$1" "$(printf '%s%x' "${SVC_CIDR6%/*}" "$1")"; }
local_dns() { pick "$1" 169.254.20.10 fd00:169:254:20::10; }
# first|each COMMAND [ARGUMENT...]: for the first family | for each, with commas
first() { local f; f=$(fams); "$@" "${f%% *}"; }
each() { local f all=; for f in $(fams); do all+=,$("$@" "$f"); done; printf '%s' "${all#,}"; }
# host ADDRESS: as it stands before a colon and a port
host() { case $1 in *:*) printf '[%s]' "$1" ;; *) printf '%s' "$1" ;; esac; }
# what up.sh was started with
running() { NODES=$(<"$RUN/nodes"); IP_FAMILY=$(<"$RUN/family"); DNS=$(<"$RUN/dns"); PROXY_MODE=$(<"$RUN/proxy"); }
alive() { [[ -s $1 ]] && kill -0 "$(<"$1")" 2>/dev/null; }

# wait_for SECONDS WHAT COMMAND...
wait_for() {
    local end=$((SECONDS + $1)) what=$2; shift 2
    until "$@" >/dev/null 2>&1; do
        (( SECONDS < end )) || die "timed out waiting for $what"
        sleep 0.3
    done
}

# in_ns NAME COMMAND...: run in the namespaces of `fabric` or of a node.
in_ns() {
    local pid; pid=$(<"$RUN/$1/init.pid") || return 1; shift
    nsenter -t "$pid" -m -n -p -u -i -- "${CLEAN_ENV[@]}" "$@"
}

# start NAME DAEMON COMMAND...: in the background, logging to run/NAME/DAEMON.log
start() {
    local name=$1 daemon=$2 pid; shift 2
    pid=$(<"$RUN/$name/init.pid")
    setsid nsenter -t "$pid" -m -n -p -u -i -- "${CLEAN_ENV[@]}" "$@" \
        </dev/null >>"$RUN/$name/$daemon.log" 2>&1 &
    echo $! > "$RUN/$name/$daemon.pid"
}

# stop NAME DAEMON [SIGNAL]: nsenter is the parent of the daemon and ends with it.
stop() {
    local f=$RUN/$1/$2.pid p c
    alive "$f" || { rm -f "$f"; return 0; }
    p=$(<"$f")
    for c in $(ps -o pid= --ppid "$p"); do kill "-${3:-TERM}" "$c" 2>/dev/null || true; done
    for _ in $(seq 50); do kill -0 "$p" 2>/dev/null || { rm -f "$f"; return 0; }; sleep 0.1; done
    log "ERROR: $2 of $1 did not end within 5 s" >&2
    [[ ${3:-} == KILL ]] || stop "$1" "$2" KILL
    return 1
}

up_apiserver() {
    local P=$RUN/pki
    start fabric kube-apiserver kube-apiserver --etcd-servers http://127.0.0.1:2379 \
        --bind-address "$([[ $IP_FAMILY == ipv4 ]] && echo 0.0.0.0 || echo ::)" --advertise-address "$(first fabric_ip)" --secure-port 6443 \
        --service-cluster-ip-range "$(each svc_cidr)" --allow-privileged --authorization-mode Node,RBAC \
        --client-ca-file "$P/ca.crt" --tls-cert-file "$P/apiserver.crt" --tls-private-key-file "$P/apiserver.key" \
        --kubelet-client-certificate "$P/admin.crt" --kubelet-client-key "$P/admin.key" \
        --kubelet-preferred-address-types InternalIP --cert-dir "$RUN/fabric/certs" \
        --service-account-issuer https://kubernetes.default.svc --service-account-key-file "$P/sa.pub" \
        --service-account-signing-key-file "$P/sa.key" --anonymous-auth=false --profiling=false
    wait_for 120 "the API server" kctl get --raw /readyz
}

kctl() { in_ns fabric kubectl --kubeconfig "$RUN/pki/admin.kubeconfig" "$@"; }
