#!/usr/bin/env python3
"""manifests.py [--check]: the chart as plain manifests, for those without Helm.

    deploy/weir.yaml       namespace, with the labels that its pods need, and all that the chart installs by default
    deploy/withdraw.yaml   what the chart's hook does before an uninstallation

Both are made by this and kept in the repository; --check only says whether they are as the chart is now. HELM: else the
one in PATH. Exit code: 0 they are, 1 they are not, 2 it could not be tried.
"""
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
HEAD = "# Made of deploy/helm/weir by deploy/manifests.py: change that, and run this.\n"
NAMESPACE = """---
# agents need the nodes' network, a folder of the node, and NET_ADMIN
apiVersion: v1
kind: Namespace
metadata:
  name: weir-system
  labels:
    app.kubernetes.io/name: weir
    pod-security.kubernetes.io/enforce: privileged
    pod-security.kubernetes.io/audit: privileged
    pod-security.kubernetes.io/warn: privileged
"""
# what is true of a release only
RELEASE = re.compile(r"^ *(helm\.sh/(chart|hook[a-z-]*)|app\.kubernetes\.io/managed-by): .*\n|^ *# after a failure it stays.*\n|^# Source: .*\n", re.M)


def documents(*options):
    helm = os.environ.get("HELM", "helm")
    command = [helm, "template", "weir", os.path.join(HERE, "helm", "weir"), "-n", "weir-system", *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        print(f"manifests.py: {helm}: {error.strerror} (HELM names another one)", file=sys.stderr)
        sys.exit(2)
    if done.returncode != 0:
        sys.exit(f"manifests.py: {done.stderr.strip()}")
    found = (RELEASE.sub("", text) for text in re.split(r"^---\n", done.stdout, flags=re.M))
    return [re.sub(r"^ *annotations:\n(?= {0,2}\S|\S)", "", text, flags=re.M) for text in found if text.strip()]


def main():
    hook = [text for text in documents("--show-only", "templates/withdraw.yaml") if re.search(r"^kind: Job$", text, re.M)]
    wanted = {
        "weir.yaml": HEAD + "# kubectl apply -f deploy/weir.yaml; to remove it: deploy/withdraw.yaml first, see deploy/README.md.\n"
        + NAMESPACE + "".join(f"---\n{text}" for text in documents("--no-hooks")),
        "withdraw.yaml": HEAD + "# kubectl apply -f deploy/withdraw.yaml, wait for job/weir-withdraw, read its log, delete -f weir.yaml.\n"
        + "".join(f"---\n{text}" for text in hook),
    }
    stale = []
    for name, text in wanted.items():
        path = os.path.join(HERE, name)
        there = open(path, encoding="utf-8").read() if os.path.exists(path) else None
        if there != text:
            stale.append(f"deploy/{name}")
            if "--check" not in sys.argv[1:]:
                with open(path, "w", encoding="utf-8") as f:
                    f.write(text)
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"manifests.py: not as the chart is: {', '.join(stale)}: run deploy/manifests.py")


if __name__ == "__main__":
    main()
