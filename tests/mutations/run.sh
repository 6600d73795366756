#!/usr/bin/env bash
# Breaks the compiler and the data plane on purpose, one clause of one statement at a time, and says whether the
# tests notice.
#   tests/mutations/run.sh [STATEMENT...]     all of mutations.txt, or these
# Works in a copy of the tree; MUTANTS_TARGET keeps what is built. Exit code 1: one survived.
set -euo pipefail
cd "$(dirname "$0")/../.."
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -co --exclude-standard -z | while IFS= read -r -d '' f; do
    [[ ! -f $f ]] || printf '%s\0' "$f"
done | tar --null -T - -cf - | tar -C "$copy" -xmf -
export CARGO_TARGET_DIR=${MUTANTS_TARGET:-$copy/target} ORACLE_CASES=${ORACLE_CASES:-1500} RUST_BACKTRACE=0
cd "$copy"
# tests FILE: those that must notice what is broken in it
tests() {
    local of=(-p weir-compiler --test oracle --test statements)
    [[ $1 != */weir-dataplane/* ]] || of=(-p weir-dataplane --test planner --test stages)
    cargo test -q "${of[@]}" >"$copy/log" 2>&1
}

{ tests compiler && tests crates/weir-dataplane/; } || { tail -40 "$copy/log"; echo "the tests fail without any mutation" >&2; exit 2; }
killed=0 survived=0 broken=0
while IFS=$'\t' read -r statement file change; do
    [[ -n $statement && $statement != \#* ]] || continue
    if [[ $# -gt 0 && " $* " != *" $statement "* ]]; then continue; fi
    cp "$file" "$copy/before"
    sed -i "$change" "$file"
    if cmp -s "$file" "$copy/before"; then
        echo "BROKEN    $statement: nothing in $file is as mutations.txt has it"; broken=$((broken + 1))
    elif tests "$file"; then
        echo "SURVIVED  $statement $file: $change"; survived=$((survived + 1))
    elif grep -q '^error: could not compile\|^error\[E' "$copy/log"; then
        echo "BROKEN    $statement does not compile"; grep -m 3 -A 4 '^error' "$copy/log"; broken=$((broken + 1))
    else
        by=$(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p; s/^    \([a-z0-9_]*\)$/\1/p' "$copy/log" | sort -u | grep -c . || true)
        echo "killed    $statement by $by tests"; killed=$((killed + 1))
    fi
    cp "$copy/before" "$file"
    touch "$file"
done <tests/mutations/mutations.txt
echo "$killed killed, $survived survived, $broken broken"
[[ $((survived + broken)) -eq 0 ]]
