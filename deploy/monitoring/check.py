#!/usr/bin/env python3
"""Alerts and dashboard ask for metrics that exist, and each alert has its section in the runbook.

check.py: exit code 1, and what is wrong. With promtool in PATH, it also checks the rules' syntax and alerts_test.yaml.
"""
import json
import pathlib
import re
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def metrics():
    """Names of docs/metrics.md; a histogram has its three series."""
    found = set()
    for name, kind in re.findall(r"^\| `(weir_\w+)` \| (\w+) \|", (ROOT / "docs/metrics.md").read_text(), re.M):
        found |= {f"{name}_{part}" for part in ("bucket", "count", "sum")} if kind == "histogram" else {name}
    return found


def wrong():
    known = metrics()
    if len(known) < 30:
        yield f"docs/metrics.md: only {len(known)} metrics were found in its tables"
    alerts = (HERE / "alerts.yaml").read_text()
    dashboard = json.loads((HERE / "dashboard.json").read_text())
    queries = [(t["expr"], p["title"]) for p in dashboard["panels"] for t in p.get("targets", [])]
    sources = [("alerts.yaml", alerts)] + [(f"dashboard.json, {title}", expr) for expr, title in queries]
    for where, text in sources:
        for name in sorted(set(re.findall(r"\bweir_(?:agent|controller)_\w+", text)) - known):
            yield f"deploy/monitoring/{where}: {name} is not in docs/metrics.md"
    if len(queries) < 10:
        yield "dashboard.json: hardly any panel asks for anything"
    names = re.findall(r"- alert: (\w+)", alerts)
    sections = re.findall(r"^## (Weir\w+)$", (ROOT / "docs/runbook.md").read_text(), re.M)
    for name in sorted(set(names) ^ set(sections)):
        yield f"{name}: " + ("no section in docs/runbook.md" if name in names else "no alert of this name")
    for name in names:
        if f"docs/runbook.md#{name.lower()}\n" not in alerts:
            yield f"{name}: its runbook_url does not lead to its section"


def main():
    problems = list(wrong())
    if promtool := shutil.which("promtool"):
        for what in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
            ran = subprocess.run([promtool, *what], cwd=HERE, capture_output=True, text=True)
            if ran.returncode != 0:
                problems.append(f"promtool {' '.join(what)}: {ran.stdout}{ran.stderr}")
    else:
        print("no promtool: rules are checked for their metrics only", file=sys.stderr)
    for problem in problems:
        print(problem, file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
