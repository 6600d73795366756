#!/bin/bash
# matrix.sh AGENT: policy-test.sh in the settings that users have, one after the other
# (some 25 minutes).  Exit code: 1 if one of them failed.
set -uo pipefail
cd "$(dirname "$0")" || exit 2
agent=${1:?which weir-agent?}
bad=0
while read -r -a setting; do
    [[ ${#setting[@]} -gt 0 ]] || continue
    # the last line has the counts
    line=$(env "${setting[@]}" ./policy-test.sh "$agent" </dev/null 2>&1 | tee "/tmp/weir-matrix.$$" | tail -n 1)
    [[ $line == *" 0 failed"* ]] || { bad=1; grep -a WRONG "/tmp/weir-matrix.$$"; }
    printf '%s\n    %s\n' "${setting[*]}" "$line"
done <<'S'
CNI_PLUGIN=ptp PROXY_MODE=nftables IP_FAMILY=ipv4
CNI_PLUGIN=ptp PROXY_MODE=iptables IP_FAMILY=dual DNS=1
CNI_PLUGIN=bridge PROXY_MODE=nftables IP_FAMILY=dual DNS=nodelocal
CNI_PLUGIN=bridge PROXY_MODE=iptables IP_FAMILY=ipv4 DNS=1
CNI_PLUGIN=ptp PROXY_MODE=nftables IP_FAMILY=ipv6 DNS=1
CNI_PLUGIN_node2=bridge PROXY_MODE=iptables IP_FAMILY=ipv6 DNS=nodelocal
CNI_PLUGIN_node2=bridge PROXY_MODE=nftables IP_FAMILY=dual
S
rm -f "/tmp/weir-matrix.$$"
exit $bad
