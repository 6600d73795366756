#!/usr/bin/env python3
"""Turns the clusters of policy-examples into pods that run: example-pods.py FAMILY IMAGE DIRECTORY...

The lab's cluster.yaml of each DIRECTORY comes on stdin, as JSON, all of them together
(`kubectl create --dry-run=client -o json`). Names, labels, nodes and named ports stay; the
addresses are the real cluster's; each pod gets a server on every port that an expected.txt
asks about, and a Service of its name, port 20000 + P for port P. A pod that is in several
examples must be the same in all of them, for all run at once.
"""
import json
import re
import sys

LABEL = "weir.test/pod"     # its value tells each pod from all others


def documents(text):
    """The objects of JSON documents that follow each other, Lists taken apart."""
    decoder, at = json.JSONDecoder(), 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        o, at = decoder.raw_decode(text, at)
        yield from o["items"] if o["kind"].endswith("List") else [o]


def tables(directory):
    """(port, protocol, servers) of each table."""
    with open(f"{directory}/expected.txt") as f:
        for line in f:
            m = re.match(r"(\d+)/(TCP|UDP)\s+(.+)", line)
            if m:
                yield int(m[1]), m[2], m[3].split()


def containers(family, image, identity, ports, named):
    """One porter for all; it serves IPv4 only, hence else a netexec for each port number."""
    declared = [{"name": name, "containerPort": p, "protocol": proto} for (p, proto), name in sorted(named.items())]
    common = {"image": image, "imagePullPolicy": "IfNotPresent"}
    if family == "ipv4":
        env = [{"name": f"SERVE_{proto}_PORT_{p}", "value": identity} for p, proto in sorted(ports)]
        return [common | {"name": "serve", "args": ["porter"], "env": env, "ports": declared}]
    return [common | {"name": f"serve-{p}", "ports": [d for d in declared if d["containerPort"] == p],
                      "args": ["netexec", f"--http-port={p}", f"--udp-port={p if (p, 'UDP') in ports else -1}"]}
            for p in sorted({p for p, _ in ports})]


def pod(family, image, o, ports):
    meta, spec = o["metadata"], o["spec"]
    identity = f"{meta['namespace']}-{meta['name']}"
    named = {(p["containerPort"], p.get("protocol", "TCP")): p["name"]
             for c in spec["containers"] for p in c.get("ports", []) if p.get("name")}
    ports = ports | set(named)
    serve = containers(family, image, identity, ports, named)
    ready = {"tcpSocket": {"port": min(p for p, proto in ports if proto == "TCP")}}
    serve[0] |= {"readinessProbe": ready | {"periodSeconds": 1, "timeoutSeconds": 2}}
    where = {"namespace": meta["namespace"], "name": meta["name"]}
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": where | {"labels": meta.get("labels", {}) | {LABEL: identity}},
         "spec": {"nodeName": spec["nodeName"], "hostname": identity, "dnsPolicy": "Default",
                  "terminationGracePeriodSeconds": 0, "enableServiceLinks": False,
                  "automountServiceAccountToken": False, "containers": serve}},
        {"apiVersion": "v1", "kind": "Service", "metadata": where,
         "spec": {"selector": {LABEL: identity}, "ipFamilyPolicy": "PreferDualStack",
                  "ports": [{"name": f"{proto.lower()}-{p}", "protocol": proto, "port": 20000 + p, "targetPort": p}
                            for p, proto in sorted(ports)]}},
    ]


def main():
    family, image, directories = sys.argv[1], sys.argv[2], sys.argv[3:]
    ports = {}
    for d in directories:
        for port, protocol, servers in tables(d):
            for s in servers:
                ports.setdefault(s, set()).add((port, protocol))
    namespaces, pods = {}, {}
    for o in documents(sys.stdin.read()):
        meta = o["metadata"]
        if o["kind"] == "Namespace":
            labels = namespaces.setdefault(meta["name"], {})
            labels.update(meta.get("labels", {}))
        elif o["kind"] == "Pod":
            name = f"{meta['namespace']}/{meta['name']}"
            made = pod(family, image, o, ports[name])
            if pods.setdefault(name, made) != made:
                sys.exit(f"example-pods: {name} differs between two examples")
    items = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n, "labels": labels}}
             for n, labels in namespaces.items()]
    json.dump({"apiVersion": "v1", "kind": "List", "items": items + sum(pods.values(), [])}, sys.stdout)


main()
