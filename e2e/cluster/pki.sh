#!/bin/bash
# Certificates and kubeconfig files of the cluster, under run/pki.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
D=$RUN/pki
[[ ! -e $D/.done ]] || exit 0
mkdir -p "$D"; cd "$D"; umask 077

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key" 2>/dev/null; }
# cert NAME SUBJECT [EXTENSIONS]
cert() {
    key "$1"
    openssl req -new -key "$1.key" -subj "$2" |
        openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out "$1.crt" \
            -extfile <(printf 'extendedKeyUsage=serverAuth,clientAuth\n%s\n' "${3:-}") 2>/dev/null
}
kubeconfig() {
    cat > "$1.kubeconfig" <<K
apiVersion: v1
kind: Config
current-context: weir-cluster
clusters: [{name: weir-cluster, cluster: {server: "https://$(host "$(first fabric_ip)"):6443", certificate-authority: $D/ca.crt}}]
users: [{name: $1, user: {client-certificate: $D/$1.crt, client-key: $D/$1.key}}]
contexts: [{name: weir-cluster, context: {cluster: weir-cluster, user: $1}}]
K
}

key ca
openssl req -x509 -new -key ca.key -subj /CN=weir-cluster-ca -days 3650 -out ca.crt
key sa
openssl ec -in sa.key -pubout -out sa.pub 2>/dev/null
cert apiserver /CN=kube-apiserver \
    "subjectAltName=IP:$(each fabric_ip | sed 's/,/,IP:/'),IP:127.0.0.1,IP:$(each svc_ip 1 | sed 's/,/,IP:/'),DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
cert admin /O=system:masters/CN=admin
cert controller-manager /CN=system:kube-controller-manager
cert scheduler /CN=system:kube-scheduler
cert proxy /CN=system:kube-proxy
for n in $NODES; do cert "$n" "/O=system:nodes/CN=system:node:$n"; done
for n in admin controller-manager scheduler proxy $NODES; do kubeconfig "$n"; done
touch .done
