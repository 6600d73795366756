#!/bin/bash
# conformance-matrix.sh AGENT [ARGUMENT...]: conformance.sh in the settings that users have, one after the other (some
# 40 minutes).  Prints the counts of each.  Exit code: 1 if one of them failed.
set -uo pipefail
cd "$(dirname "$0")" || exit 2
agent=${1:?which weir-agent?}; shift
bad=0 log=$(mktemp)
while read -r settings; do
    [[ $settings ]] || continue
    setting=()
    # nodes are separated by commas here
    for word in $settings; do
        case $word in NODES=*) setting+=("${word//,/ }") ;; *) setting+=("$word") ;; esac
    done
    line=$(env "${setting[@]}" ./conformance.sh "$agent" "$@" </dev/null 2>&1 | tee "$log" | tail -n 1)
    [[ $line == *" 0 failed"* ]] || { bad=1; grep -aE '^(failed|unable|observed|WRONG) ' "$log"; }
    printf '%s\n    %s\n    %s\n' "$settings" "$(grep -aE '^[0-9]+ passed, .* checks in ' "$log")" "$line"
done <<'T'
CNI_PLUGIN=ptp PROXY_MODE=nftables IP_FAMILY=ipv4
CNI_PLUGIN=bridge PROXY_MODE=iptables IP_FAMILY=ipv4 DNS=1
CNI_PLUGIN=ptp PROXY_MODE=iptables IP_FAMILY=dual DNS=1
CNI_PLUGIN=bridge PROXY_MODE=nftables IP_FAMILY=dual DNS=nodelocal
CNI_PLUGIN=ptp PROXY_MODE=nftables IP_FAMILY=ipv6
NODES=node1,node2,node3 CNI_PLUGIN_node2=bridge PROXY_MODE=nftables IP_FAMILY=ipv4
NODES=node1,node2,node3 CNI_PLUGIN_node3=bridge PROXY_MODE=iptables IP_FAMILY=dual DNS=nodelocal
T
rm -f "$log"
exit $bad
