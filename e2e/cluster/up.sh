#!/bin/bash
# Starts the cluster: fabric and control plane, then the nodes.
# shellcheck disable=SC2046,SC2086  # lists of node names are meant to be split
# Environment: NODES, CNI_PLUGIN[_nodeN], PROXY_MODE, IP_FAMILY, DNS (see lib.sh).
set -euo pipefail
. "$(dirname "$0")/lib.sh"

up_ns() {
    local dir=$RUN/$1
    mkdir -p "$dir"; rm -f "$dir/init.pid"
    setsid unshare --mount --net --pid --uts --ipc --fork --kill-child=KILL --propagation private -- \
        "${CLEAN_ENV[@]}" NODES="$NODES" IP_FAMILY="$IP_FAMILY" "$HERE/node-init.sh" "$1" </dev/null >>"$dir/init.log" 2>&1 &
    echo $! > "$dir/unshare.pid"
    wait_for 20 "namespaces of $1" alive "$dir/init.pid"
}

# What a kubelet wants to find: a subtree of its own for its node's pods.
up_cgroups() {
    if [[ $(stat -f -c %T /sys/fs/cgroup) == cgroup2fs ]]; then up_cgroups_v2; else up_cgroups_v1; fi
}

up_cgroups_v2() {
    local n d c
    for n in "" "/$CGROUP" $(printf "/$CGROUP/%s " $NODES); do
        d=/sys/fs/cgroup$n
        mkdir -p "$d"
        for c in cpu cpuset memory pids io hugetlb; do
            grep -qw "$c" "$d/cgroup.controllers" || continue
            echo "+$c" > "$d/cgroup.subtree_control" ||
                die "cannot enable the $c controller in $d (in a container: move its processes to a cgroup below first)"
        done
    done
    echo "$CGROUP_MEMORY" > "/sys/fs/cgroup/$CGROUP/memory.max"
}

up_cgroups_v1() {
    local c n
    for c in cpu cpuacct cpuset memory pids devices freezer blkio systemd hugetlb net_cls perf_event; do
        [[ -d /sys/fs/cgroup/$c ]] || continue
        for n in "$CGROUP" $(printf "$CGROUP/%s " $NODES); do
            mkdir -p "/sys/fs/cgroup/$c/$n"
            [[ $c != cpuset ]] || for f in cpuset.cpus cpuset.mems; do
                cat "/sys/fs/cgroup/cpuset/$f" > "/sys/fs/cgroup/cpuset/$n/$f"
            done
        done
    done
    [[ ! -d /sys/fs/cgroup/memory/$CGROUP ]] || echo "$CGROUP_MEMORY" > "/sys/fs/cgroup/memory/$CGROUP/memory.limit_in_bytes"
}

up_fabric() {
    up_ns fabric
    in_ns fabric ip link add fab0 type bridge
    local f
    for f in $(fams); do in_ns fabric ip addr add "$(fabric_ip "$f")/$(fabric_len "$f")" dev fab0; done
    in_ns fabric ip link set fab0 up
}

up_control_plane() {
    local P=$RUN/pki
    mkdir -p "$RUN/fabric/etcd"; chmod 700 "$RUN/fabric/etcd"
    start fabric etcd etcd --data-dir "$RUN/fabric/etcd" --unsafe-no-fsync --log-level warn \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380
    up_apiserver
    start fabric kube-controller-manager kube-controller-manager --kubeconfig "$P/controller-manager.kubeconfig" \
        --bind-address 127.0.0.1 --cert-dir "$RUN/fabric/certs" --use-service-account-credentials \
        --root-ca-file "$P/ca.crt" --service-account-private-key-file "$P/sa.key" \
        --cluster-signing-cert-file "$P/ca.crt" --cluster-signing-key-file "$P/ca.key" \
        --allocate-node-cidrs=false --leader-elect=false
    start fabric kube-scheduler kube-scheduler --kubeconfig "$P/scheduler.kubeconfig" \
        --bind-address 127.0.0.1 --cert-dir "$RUN/fabric/certs" --leader-elect=false
}

# The node's link to the fabric, and routes to the pods of the other nodes.
up_node_net() {
    local n=$1 o f
    # only the network namespace is entered here, for the peer's pid is an outer one
    nsenter -t "$(<"$RUN/fabric/init.pid")" -n ip link add "veth-$n" type veth peer name eth0 netns "$(<"$RUN/$n/init.pid")"
    in_ns fabric ip link set "veth-$n" master fab0 up
    in_ns "$n" ip link set eth0 up
    for f in $(fams); do
        in_ns "$n" ip addr add "$(node_ip "$n" "$f")/$(fabric_len "$f")" dev eth0
        for o in $NODES; do
            [[ $o == "$n" ]] || in_ns "$n" ip "-$f" route add "$(node_pods "$o" "$f")" via "$(node_ip "$o" "$f")"
        done
        # the fabric is all there is beyond the nodes: it forwards nothing
        in_ns "$n" ip "-$f" route add default via "$(fabric_ip "$f")"
        in_ns fabric ip "-$f" route add "$(node_pods "$n" "$f")" via "$(node_ip "$n" "$f")"
        # (the real node-local cache has a dummy device for them)
        [[ $DNS != nodelocal ]] || for a in "$(local_dns "$f")" "$(svc_ip 10 "$f")"; do
            in_ns "$n" ip addr add "$a/$(pick "$f" 32 128)" dev lo
        done
    done
    [[ $DNS != nodelocal ]] || up_untracked "$n"
}

# What pods ask the node-local cache is not tracked, and so not translated, though kube-proxy would.
up_untracked() {
    local f ip addresses
    {
        echo 'table inet node-local-dns {'
        echo '    chain asked { type filter hook prerouting priority raw; jump cache; }'
        echo '    chain answered { type filter hook output priority raw; jump cache; }'
        echo '    chain cache {'
        for f in $(fams); do
            ip=$(pick "$f" ip ip6) addresses="{ $(local_dns "$f"), $(svc_ip 10 "$f") }"
            for p in udp tcp; do
                echo "        $ip daddr $addresses $p dport 53 counter notrack"
                echo "        $ip saddr $addresses $p sport 53 counter notrack"
            done
        done
        echo '    }'
        echo '}'
    } | in_ns "$1" nft -f -
}

up_containerd() {
    local n=$1 d=$RUN/$1
    mkdir -p "$d/containerd" "$d/cni"
    cat > "$d/containerd.toml" <<C
version = 3
root = "$d/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "$(<"$IMG/pause.name")"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["$BIN/cni"]
  conf_dir = "$d/cni"
[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "runc"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "$BIN/runc"
  SystemdCgroup = false
C
    start "$n" containerd containerd --config "$d/containerd.toml"
    wait_for 60 "containerd of $n" in_ns "$n" ctr version
    for i in $images; do
        in_ns "$n" ctr -n k8s.io images import --local "$IMG/$i.tar" >>"$d/images.log" 2>&1
    done
}

up_kubelet() {
    local n=$1 d=$RUN/$1
    mkdir -p "$d/kubelet"
    : > "$d/resolv.conf"
    cat > "$d/kubelet.yaml" <<K
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: "$(first node_ip "$n")"
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: $RUN/pki/ca.crt}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP/$n
failSwapOn: false
readOnlyPort: 0
resolvConf: $d/resolv.conf
volumePluginDir: $d/kubelet/volume-plugins
podLogsDir: $d/pod-logs
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
maxPods: 110
serializeImagePulls: true
nodeStatusUpdateFrequency: 10s
syncFrequency: 10s
$(case $DNS in 0) exit ;; 1) ip=$(first svc_ip 10) ;; *) ip=$(first local_dns) ;; esac
printf 'clusterDomain: cluster.local\nclusterDNS: ["%s"]' "$ip")
K
    start "$n" kubelet kubelet --config "$d/kubelet.yaml" --kubeconfig "$RUN/pki/$n.kubeconfig" \
        --root-dir "$d/kubelet" --cert-dir "$d/kubelet/pki" --hostname-override "$n" --node-ip "$(each node_ip "$n")" --v=2
}

up_proxy() {
    local n=$1 d=$RUN/$1
    cat > "$d/proxy.yaml" <<K
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: $PROXY_MODE
hostnameOverride: $n
bindAddress: "$(first node_ip "$n")"
clusterCIDR: $(each pod_cidr)
detectLocalMode: ClusterCIDR
clientConnection: {kubeconfig: $RUN/pki/proxy.kubeconfig}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
nftables: {minSyncPeriod: 200ms, syncPeriod: 30s}
iptables: {minSyncPeriod: 200ms, syncPeriod: 30s}
K
    start "$n" kube-proxy kube-proxy --config "$d/proxy.yaml" --v=2
}

images="pause agnhost"
case $DNS in 0) ;; 1|nodelocal) images+=" coredns" ;; *) die "DNS: 0, 1 or nodelocal" ;; esac
fams >/dev/null
for f in pause etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy \
         containerd containerd-shim-runc-v2 ctr runc cni/ptp cni/bridge cni/host-local cni/loopback; do
    [[ -x $BIN/$f ]] || die "$BIN/$f is missing: run build.sh"
done
for i in $images; do [[ -e $IMG/$i.tar ]] || die "$IMG/$i.tar is missing: run build.sh $i images"; done
for n in $NODES; do
    p=CNI_PLUGIN_$n
    [[ ${!p:-$CNI_PLUGIN} != bridge || -e /proc/sys/net/bridge ]] || die "bridged pods need the kernel module br_netfilter: modprobe br_netfilter"
done
! alive "$RUN/fabric/init.pid" || die "already up: run down.sh"
t0=$SECONDS
rm -rf "$RUN"; mkdir -p "$RUN"
echo "$NODES" > "$RUN/nodes"; echo "$IP_FAMILY" > "$RUN/family"; echo "$DNS" > "$RUN/dns"; echo "$PROXY_MODE" > "$RUN/proxy"
"$HERE/pki.sh"
up_cgroups
up_fabric
for n in $NODES; do up_ns "$n"; up_node_net "$n"; done
log "namespaces are up"
up_control_plane
log "control plane is up"
for n in $NODES; do
    p=CNI_PLUGIN_$n
    "$HERE/set-cni.sh" "$n" "${!p:-$CNI_PLUGIN}"
    up_containerd "$n"
    up_kubelet "$n"
    up_proxy "$n"
done
for n in $NODES; do
    wait_for 120 "registration of $n" kctl get node "$n"
    cidrs=$(each node_pods "$n")
    kctl patch node "$n" -p "{\"spec\":{\"podCIDR\":\"${cidrs%,*}\",\"podCIDRs\":[\"${cidrs/,/\",\"}\"]}}"
done
kctl wait --for=condition=Ready --timeout=120s $(printf 'node/%s ' $NODES)
wait_for 60 "the default service account" kctl get serviceaccount default
[[ $DNS == 0 ]] || "$HERE/dns.sh"
log "up in $((SECONDS - t0)) s"
