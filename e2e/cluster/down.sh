#!/bin/bash
# Stops the cluster.  Each node (and the fabric) is one pid namespace: when
# its first process ends, the kernel ends the others, and with them go mounts,
# network namespaces and links.  Logs stay in run/ until the next up.sh.
set -uo pipefail
. "$(dirname "$0")/lib.sh"

for f in "$RUN"/*/init.pid; do
    [[ -s $f ]] || continue
    pid=$(<"$f")
    # is it ours still?
    if [[ $(readlink "/proc/$pid/exe" 2>/dev/null) == "$BIN/pause" ]]; then
        kill -TERM "$pid"
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    fi
    rm -f "$f" "${f%/*}"/*.pid
done
# what an up.sh that was interrupted left: no first process known, but its unshare
for f in "$RUN"/*/unshare.pid; do
    alive "$f" && [[ $(cat "/proc/$(<"$f")/comm") == unshare ]] && kill -KILL "$(<"$f")"
    rm -f "$f"
done
for c in /sys/fs/cgroup/"$CGROUP" /sys/fs/cgroup/*/"$CGROUP"; do
    [[ -d $c ]] || continue
    for _ in 1 2 3 4 5; do
        find "$c" -depth -type d -exec rmdir {} + 2>/dev/null
        [[ -d $c ]] || break
        sleep 1
    done
    [[ ! -d $c ]] || log "left: $c"
done
log "down"
