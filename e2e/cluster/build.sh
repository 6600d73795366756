#!/bin/bash
# Builds every binary and image archive of the cluster, from source, through the Go
# module proxy.  What is in bin/ (or img/) already is not built again; delete a file to
# rebuild it.
# Usage: build.sh [target ...]    (default: all targets but coredns)
set -euo pipefail

. "$(dirname "$0")/lib.sh"
SRC=$WEIR_CLUSTER_HOME/build
P=${BUILD_PARALLEL:-2}

K8S_VERSION=1.36.3
GO_VERSION=1.26
CONTAINERD_VERSION=v2.3.7
RUNC_VERSION=v1.4.3
CNI_VERSION=v1.9.1
ETCD_VERSION=v3.6.8
COREDNS_VERSION=v1.14.2                 # what kubeadm of this Kubernetes deploys
PAUSE_IMAGE=registry.k8s.io/pause:3.10.2
AGNHOST_IMAGE=registry.k8s.io/e2e-test-images/agnhost:2.63.0
COREDNS_IMAGE=weir.test/coredns:$COREDNS_VERSION

export GOFLAGS=-buildvcs=false GOTOOLCHAIN=local
# need PACKAGE COMMAND...: all that is missing is said at once, before anything is built
lacks=()
need() { local p=$1 c; shift; for c in "$@"; do command -v "$c" >/dev/null || lacks+=("$p"); done; }
check_tools() {
    local v
    need gcc gcc; need pkg-config pkg-config; need openssl openssl; need python3 python3
    need nftables nft; need iptables iptables; need iproute2 ip; need util-linux nsenter unshare
    need curl curl; need procps ps; need ca-certificates update-ca-certificates
    [[ ${#lacks[@]} -eq 0 ]] || die "missing: apt-get install --no-install-recommends $(printf '%s\n' "${lacks[@]}" | sort -u | tr '\n' ' ')"
    command -v go >/dev/null || die "missing: Go $GO_VERSION or later (in PATH; the distributions' is too old, see go.dev/doc/install)"
    v=$(go env GOVERSION); v=${v#go}
    [[ $(printf '%s\n' "$GO_VERSION" "${v%%[!0-9.]*}" | sort -V | head -n 1) == "$GO_VERSION" ]] ||
        die "Go $v is too old: Kubernetes $K8S_VERSION needs $GO_VERSION or later"
}

missing() { local f; for f in "$@"; do [[ -e $BIN/$f ]] || return 0; done; return 1; }

# module DIR MODULE VERSION PACKAGE...: a main module that only imports
# commands of another module, so that `go build` can build them unpatched.
module() {
    local dir=$SRC/$1 mod=$2 ver=$3 p; shift 3
    mkdir -p "$dir"; cd "$dir"
    {
        printf '//go:build tools\n\npackage tools\n\nimport (\n'
        for p in "$@"; do printf '\t_ "%s"\n' "$p"; done
        printf ')\n'
    } > tools.go
    [[ -f go.mod ]] || { go mod init "weir.test/$(basename "$dir")"; go mod edit -require="$mod@$ver"; go mod tidy -e; }
}

k8s_module() {
    local dir=$SRC/k8s d
    mkdir -p "$dir"; cd "$dir"
    [[ -f go.mod ]] && return
    d=$(cd / && go mod download -json "k8s.io/kubernetes@v$K8S_VERSION" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
    {
        printf 'module weir.test/k8s\n\ngo 1.26.0\n\nrequire k8s.io/kubernetes v%s\n\nreplace (\n' "$K8S_VERSION"
        sed -n 's/^[[:space:]]*\(k8s\.io\/[a-z-]*\) => .*/\1/p' "$d/go.mod" | sort -u |
            while read -r m; do printf '\t%s => %s v0.%s\n' "$m" "$m" "${K8S_VERSION#*.}"; done
        printf ')\n'
    } > go.mod
    {
        printf '//go:build tools\n\npackage tools\n\nimport (\n'
        for p in cmd/kube-apiserver cmd/kube-controller-manager cmd/kube-proxy cmd/kube-scheduler \
                 cmd/kubectl cmd/kubelet test/images/agnhost test/e2e; do
            printf '\t_ "k8s.io/kubernetes/%s"\n' "$p"
        done
        printf ')\n'
    } > tools.go
    go mod tidy
}

k8s_ldflags() {
    local p f="-s -w"
    for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        f+=" -X $p.gitVersion=v$K8S_VERSION -X $p.gitMajor=1 -X $p.gitMinor=36"
        f+=" -X $p.gitCommit=v$K8S_VERSION -X $p.gitTreeState=clean"
    done
    printf '%s' "$f"
}

build_k8s() {
    local c
    for c in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
        missing "$c" || continue
        k8s_module; log "$c"
        CGO_ENABLED=0 go build -p "$P" -mod=mod -ldflags "$(k8s_ldflags)" -o "$BIN/$c" "k8s.io/kubernetes/cmd/$c"
    done
}

build_agnhost() {
    missing agnhost || return 0
    k8s_module; log agnhost
    CGO_ENABLED=0 go build -p "$P" -mod=mod -ldflags '-s -w' -o "$BIN/agnhost" k8s.io/kubernetes/test/images/agnhost
}

# Kubernetes' own end-to-end tests, as they are: a test binary of a package.
build_e2e() {
    missing e2e.test || return 0
    k8s_module; log e2e.test
    CGO_ENABLED=0 go test -c -p "$P" -mod=mod -ldflags "$(k8s_ldflags)" -o "$BIN/e2e.test" k8s.io/kubernetes/test/e2e
}

build_containerd() {
    missing containerd containerd-shim-runc-v2 ctr || return 0
    local m=github.com/containerd/containerd/v2
    module containerd $m $CONTAINERD_VERSION $m/cmd/containerd $m/cmd/containerd-shim-runc-v2 $m/cmd/ctr
    log containerd
    CGO_ENABLED=0 go build -p "$P" -mod=mod -tags 'no_btrfs,no_devmapper,no_zfs' \
        -ldflags "-s -w -X $m/version.Version=$CONTAINERD_VERSION" -o "$BIN/" \
        $m/cmd/containerd $m/cmd/containerd-shim-runc-v2 $m/cmd/ctr
}

# The static libseccomp, from its package, unpacked under build/deb/root: nothing gets installed.
libseccomp() {
    mkdir -p "$SRC/deb"; cd "$SRC/deb"
    compgen -G "libseccomp-dev_*.deb" >/dev/null || apt-get -o APT::Sandbox::User=root download libseccomp-dev ||
        die "cannot download the package libseccomp-dev: run apt-get update"
    dpkg -x libseccomp-dev_*.deb root
}

build_runc() {
    missing runc || return 0
    local m=github.com/opencontainers/runc lib=$SRC/deb/root/usr arch
    arch=$(gcc -dumpmachine)
    libseccomp
    module runc $m $RUNC_VERSION $m
    log runc
    # CRI asks for a seccomp profile, so runc has to know seccomp
    PKG_CONFIG_PATH="" PKG_CONFIG_LIBDIR=$lib/lib/$arch/pkgconfig PKG_CONFIG_SYSROOT_DIR=$SRC/deb/root \
    CGO_ENABLED=1 CGO_CFLAGS="-O2 -I$lib/include" CGO_LDFLAGS="-L$lib/lib/$arch" \
        go build -p "$P" -mod=mod -tags 'seccomp osusergo netgo' \
        -ldflags "-s -w -X main.version=${RUNC_VERSION#v} -linkmode external -extldflags -static" -o "$BIN/runc" $m
}

build_cni() {
    local m=github.com/containernetworking/plugins/plugins p want=()
    for p in main/ptp main/bridge main/loopback meta/portmap ipam/host-local; do want+=("cni/${p#*/}"); done
    missing "${want[@]}" || return 0
    module cni ${m%/plugins} $CNI_VERSION $m/main/ptp $m/main/bridge $m/main/loopback $m/meta/portmap $m/ipam/host-local
    log cni plugins
    CGO_ENABLED=0 go build -p "$P" -mod=mod -ldflags '-s -w' -o "$BIN/cni/" \
        $m/main/ptp $m/main/bridge $m/main/loopback $m/meta/portmap $m/ipam/host-local
}

build_etcd() {
    missing etcd || return 0
    local m=go.etcd.io/etcd/server/v3
    module etcd $m $ETCD_VERSION $m
    log etcd
    CGO_ENABLED=0 go build -p "$P" -mod=mod -ldflags '-s -w' -o "$BIN/etcd" $m
}

build_coredns() {
    missing coredns || return 0
    local m=github.com/coredns/coredns
    module coredns $m $COREDNS_VERSION $m
    log coredns
    CGO_ENABLED=0 go build -p "$P" -mod=mod -ldflags '-s -w' -o "$BIN/coredns" $m
}

build_pause() {
    missing pause || return 0
    [[ -e $(gcc -print-file-name=libc.a) && $(gcc -print-file-name=libc.a) == /* ]] || die "missing: apt-get install libc6-dev"
    log pause
    cat > "$SRC/pause.c" <<'C'
/* Waits for a signal to end, and reaps children: pid 1 of a pod or of a node. */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void down(int s) { (void)s; _exit(0); }
static void reap(int s) { (void)s; while (waitpid(-1, NULL, WNOHANG) > 0) ; }
int main(void)
{
    struct sigaction d = { .sa_handler = down };
    struct sigaction r = { .sa_handler = reap, .sa_flags = SA_NOCLDSTOP | SA_RESTART };
    if (sigaction(SIGINT, &d, NULL) || sigaction(SIGTERM, &d, NULL) || sigaction(SIGCHLD, &r, NULL))
        return 1;
    for (;;) pause();
}
C
    gcc -static -Os -s -o "$BIN/pause" "$SRC/pause.c"
}

# Named as Kubernetes names them, so that its own tests find them (coredns: there when it has been built).
build_images() {
    local i name cmd
    for i in pause agnhost coredns; do
        [[ $i != coredns || -e $BIN/coredns ]] || continue
        [[ ! -e $IMG/$i.tar || $BIN/$i -nt $IMG/$i.tar ]] || continue
        cmd=()
        case $i in
            pause) name=$PAUSE_IMAGE ;;
            agnhost) name=$AGNHOST_IMAGE cmd=(pause) ;;
            coredns) name=$COREDNS_IMAGE ;;
        esac
        log "image $name"
        python3 "$HERE/mkimage.py" "$name" "$IMG/$i.tar" "$BIN/$i" "${cmd[@]}"
        echo "$name" > "$IMG/$i.name"
    done
}

if [[ $# -eq 0 ]]; then set -- pause k8s containerd runc cni etcd agnhost images; fi
check_tools
mkdir -p "$BIN/cni" "$SRC" "$IMG"
for t in "$@"; do
    declare -F "build_$t" >/dev/null || die "no such target: $t"
    ( "build_$t" )
done
log "all is built"
