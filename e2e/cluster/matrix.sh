#!/bin/bash
# matrix.sh AGENT: policy-test.sh, and services-test.sh, in the settings that users have, one after
# the other (some 40 minutes).  Exit code: 1 if one of them failed.
set -uo pipefail
cd "$(dirname "$0")" || exit 2
agent=${1:?which weir-agent?}
bad=0
while read -r script settings; do
    [[ $script ]] || continue
    read -r -a setting <<<"$settings"
    # the last line has the counts
    line=$(env "${setting[@]}" "./$script" "$agent" </dev/null 2>&1 | tee "/tmp/weir-matrix.$$" | tail -n 1)
    [[ $line == *" 0 failed"* ]] || { bad=1; grep -a WRONG "/tmp/weir-matrix.$$"; }
    printf '%s %s\n    %s\n' "$script" "$settings" "$line"
done <<'S'
policy-test.sh CNI_PLUGIN=ptp PROXY_MODE=nftables IP_FAMILY=ipv4
policy-test.sh CNI_PLUGIN=ptp PROXY_MODE=iptables IP_FAMILY=dual DNS=1
policy-test.sh CNI_PLUGIN=bridge PROXY_MODE=nftables IP_FAMILY=dual DNS=nodelocal
policy-test.sh CNI_PLUGIN=bridge PROXY_MODE=iptables IP_FAMILY=ipv4 DNS=1
policy-test.sh CNI_PLUGIN=ptp PROXY_MODE=nftables IP_FAMILY=ipv6 DNS=1
policy-test.sh CNI_PLUGIN_node2=bridge PROXY_MODE=iptables IP_FAMILY=ipv6 DNS=nodelocal
policy-test.sh CNI_PLUGIN_node2=bridge PROXY_MODE=nftables IP_FAMILY=dual
services-test.sh CNI_PLUGIN=ptp IP_FAMILY=ipv4
services-test.sh CNI_PLUGIN=bridge IP_FAMILY=ipv4
services-test.sh CNI_PLUGIN=ptp IP_FAMILY=ipv6
S
rm -f "/tmp/weir-matrix.$$"
exit $bad
