# shellcheck shell=bash
# What the command weir says of the cluster while it runs: the same as packets do. Sourced by controller-test.sh.
# Its policies are in force (a may reach c at 80/TCP; all else in namespace trial is denied).

WEIR=$(dirname "$AGENT")/weir
cli() { in_ns fabric "$WEIR" "$1" --kubeconfig "$RUN/pki/admin.kubeconfig" "${@:2}"; }
# json_has EXPRESSION: of the JSON on stdin, which is x
json_has() { python3 -c "import json, sys; x = json.load(sys.stdin); sys.exit(not ($1))"; }
# code WANTED COMMAND...
code() { local wanted=$1 got=0; shift; "$@" >"$WORK/answer.txt" 2>&1 || got=$?; [[ $got == "$wanted" ]]; }

# all_pairs TABLE: weir can says of each pair of pods what a table of probe.py says
all_pairs() {
    cli can --all --port 80/TCP -n trial -o json | python3 -c '
import json, sys
lines = [l.split() for l in sys.argv[1].splitlines()]
wanted = {(l[0], to): v == "pass" for l in lines[1:] if "/" in l[0] for to, v in zip(lines[0][1:], l[1:]) if v != "." and l[0] != to}
got = {(a["from"], a["to"]): a["allowed"] for a in json.load(sys.stdin)}
wrong = [(p, v) for p, v in wanted.items() if got.get(p) != v]
print(len(wanted), "pairs", wrong)
sys.exit(bool(wrong or len(wanted) < 6))' "$1"
}

step "weir, of the cluster as it is"
expect "can: each pair as packets have it" all_pairs "$1"
expect "can: a Service by its backends" code 0 cli can a svc/c:8000 -n trial
expect "can: exit code 1 where it is denied" code 1 cli can trial/a trial/d:80
expect "can: names what denies" grep -q 'isolated by .*trial/deny-all' "$WORK/answer.txt"
expect "can: exit code 2, and near names, for one that is not there" code 2 cli can trial/aa trial/d:80
explained() { cli explain pod c -n trial -o json | json_has '"trial/to-c" in json.dumps(x) and "trial/deny-all" in json.dumps(x)'; }
expect "explain: by which policies a pod is isolated" explained
expect "lint: finds nothing that is an error" code 0 cli lint -A
expect "graph: an SVG" grep -q '<svg' <(cli graph -n trial -o svg)
expect "render: what a node's agent has, with its pods" grep -q "$(address a)" <(cli render --node node1)
kctl -n trial create secret generic hidden --from-literal=key=not-for-snapshots --dry-run=client -o yaml | kctl apply -f - >/dev/null
kctl -n trial annotate --overwrite pod a note=not-for-snapshots >/dev/null
cli snapshot > "$WORK/snapshot.yaml" 2>"$WORK/answer.txt" || cat "$WORK/answer.txt"
lacks() { grep -q trial "$2" && ! grep -q "$1" "$2"; }
expect "snapshot: no secrets, no annotations" lacks not-for-snapshots "$WORK/snapshot.yaml"
expect "snapshot: answers alike" code 0 "$WEIR" can trial/a trial/c:80 -f "$WORK/snapshot.yaml"
expect "snapshot: denials as well" code 1 "$WEIR" can trial/a trial/d:80 -f "$WORK/snapshot.yaml"
cat > "$WORK/new.yaml" <<'Y'
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: trial, name: to-c}, spec: {podSelector: {matchLabels: {role: c}}, policyTypes: [Ingress]}}
Y
diff_cuts() { cli diff -f "$WORK/new.yaml" -o json | json_has '[f["change"] for f in x["flows"]] == ["cut"]'; }
expect "diff: what a policy without its rule cuts" diff_cuts
expect "diff: exit code 1 with --exit-code" code 1 cli diff -f "$WORK/new.yaml" --exit-code
policy to-c '{podSelector: {matchLabels: {role: c}}, policyTypes: [Ingress]}'
tables 15 <<'T'
80/TCP        trial/c
trial/a       drop
T
expect "applied: weir can says it, too" code 1 cli can trial/a trial/c:80
policy to-c '{podSelector: {matchLabels: {role: c}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {role: a}}}], ports: [{port: 80}]}]}'
tables 15 <<<"$1"
# somebody who may see one namespace only
kctl -n trial create serviceaccount reader --dry-run=client -o yaml | kctl apply -f - >/dev/null
kctl -n trial create rolebinding reader --clusterrole view --serviceaccount trial:reader --dry-run=client -o yaml | kctl apply -f - >/dev/null
sed "s|user: {client-certificate:.*}}|user: {token: $(kctl -n trial create token reader)}}|" "$RUN/pki/admin.kubeconfig" > "$WORK/reader.kubeconfig"
as_reader() { in_ns fabric "$WEIR" can "$@" --kubeconfig "$WORK/reader.kubeconfig" -n trial; }
expect "with the right to see one namespace: an answer of it" code 0 as_reader a c:80
expect "which says what was not seen" grep -q 'you may not' "$WORK/answer.txt"
# packets of the tables above were denied, and controllers' agents tell of them as pods (those of engine.sh do not)
if [[ $(kctl get pods -A -l app.kubernetes.io/component=agent -o name) ]]; then
    logs_tell() { cli logs -n trial --since 10m -o json | python3 -c '
import json, sys
lines = [json.loads(line) for line in sys.stdin]
denied = {(l["from"].get("pod"), l["to"].get("pod"), l["direction"]) for l in lines if l["verdict"] == "denied"}
by = {p for l in lines for p in l.get("policies", [])}
sys.exit(not (any(d[:2] == ("trial/a", "trial/b") for d in denied) and {"trial/deny-all"} <= by))'; }
    expect "logs: denied connections, with the policies that isolate" logs_tell
    logs_name() { cli logs -n trial --since 10m | grep "trial/b -> trial/c " >/dev/null; }
    expect "logs: pods of other nodes by their names of now" logs_name
    expect "logs: nothing for who may not read them" code 2 in_ns fabric "$WEIR" logs --kubeconfig "$WORK/reader.kubeconfig"
    # allowed ones where a namespace asks for it: at both ends, of which each counts for itself
    expect "counters: what to do where a namespace does not ask" \
        grep -q 'kubectl annotate namespace trial weir.dev/log-allowed=true' <(cli explain pod c -n trial --counters)
    kctl annotate --overwrite namespace trial weir.dev/log-allowed=true >/dev/null
    passed() { # POD DIRECTION POLICY: connections that its first clause let pass
        cli explain pod "$1" -n trial --counters --since 10m -o json | json_has \
            "any(c['policy'] == '$3' and c['connections'] > 0 for c in x['subjects'][0]['counters']['$2']['clauses'])"
    }
    table=$1
    soon() { (wait_for "$@"); }
    told_allowed() { tables 15 <<<"$table" >/dev/null; passed c ingress trial/to-c && passed a egress trial/from-a; }
    expect "counters: the clause that let a connection pass, at each end" soon 60 "counters" told_allowed
    logs_allowed() { cli logs -n trial --verdict allowed --since 10m | grep "trial/a -> trial/c  80/TCP  ingress of trial/c, by trial/to-c ingress\[0\].from\[0\] ports\[0\]" >/dev/null; }
    expect "logs: allowed connections, with the clause" logs_allowed
    kctl annotate namespace trial weir.dev/log-allowed- >/dev/null
    quiet() { local n; for n in node1 node2; do ! in_ns "$n" nft list table inet weir | grep -q allowed_ || return 1; done; }
    expect "without the annotation, nothing of it is left on the nodes" soon 20 "no chain that tells" quiet
fi
