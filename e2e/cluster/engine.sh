#!/bin/bash
# engine.sh start COMMAND... | engine.sh stop | engine.sh kill
# Runs a policy engine as a daemon in the namespaces of every node; {node} in
# the command becomes the node's name.  A kubeconfig with all rights is
# run/pki/admin.kubeconfig.  Logs: run/nodeN/engine.log.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
NODES=$(<"$RUN/nodes")
bad=0 verb=${1:?start|stop|kill}; shift
case $verb in
    start)
        for n in $NODES; do
            ! alive "$RUN/$n/engine.pid" || die "one runs on $n: stop it first"
            start "$n" engine "${@//\{node\}/$n}"
        done
        sleep 1
        for n in $NODES; do alive "$RUN/$n/engine.pid" || die "did not stay up on $n: see $RUN/$n/engine.log"; done ;;
    stop) for n in $NODES; do stop "$n" engine || bad=1; done ;;
    kill) for n in $NODES; do stop "$n" engine KILL || bad=1; done ;;
    *) die "start, stop or kill" ;;
esac
exit $bad
