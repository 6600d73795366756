#!/usr/bin/env python3
"""What policies see of Services, and what clients get: services.txt against real packets.

    services.py objects IMAGE          the pods and Services, as JSON
    services.py status FAMILY POLICY   the status of the Service with that externalTrafficPolicy
    services.py observe STATE          every line of services.txt sent, with what the forward hooks of the
                                       nodes saw of it; compared with the line
    services.py policies               the names of the policies; about NAME: what one says
    services.py policy NAME STATE      one of them, as JSON
    services.py check STATE POLICY     every line of services.txt under that policy ("open": none)
    services.py tables                 services.txt and what follows from it, as docs/services.md has it

STATE is what `kubectl get pods,services -A -o json` says. A line of services.txt says what policy sees; what
clients get under each policy follows from it by one rule each, in `Policy`, and by nothing that was measured.
"""
import argparse
import functools
import json
import os
import re
import subprocess
import sys

import probe

HERE = os.path.dirname(os.path.abspath(__file__))
NAMESPACE = "services"
PODS = {"server": "node1", "near": "node1", "far": "node2"}
# what the server listens on, and how the same is called elsewhere
PORTS = {"TCP": {"pod": 8080, "service": 8000, "nodeport": 30080, "hostport": 18080},
         "UDP": {"pod": 8081, "service": 8001, "nodeport": 30081, "hostport": 18081}}
# by traffic policy: the Service's name, what is added to its nodePorts, its addresses outside
SERVICES = {"Cluster": ("spread", 0, ("1", "2")), "Local": ("stay", 10, ("3", "4"))}
LOAD_BALANCER = {"ipv4": "172.30.200.", "ipv6": "fd00:172:30:200::"}   # ... of node1, of node2
OUTSIDE = {"ipv4": "172.30.0.1", "ipv6": "fd00:172:30::1"}


def node_port(policy, protocol):
    return PORTS[protocol]["nodeport"] + SERVICES[policy][1]


def numbers(protocol, kind):
    return [node_port(s, protocol) for s in SERVICES] if kind == "nodeport" else [PORTS[protocol][kind]]


def load_balancer(family, policy):
    """The addresses that lead to node1 and to node2."""
    return [LOAD_BALANCER[family] + n for n in SERVICES[policy][2]]


# --- the objects ----------------------------------------------------------------------

def objects(image):
    def meta(name, **more):
        return {"namespace": NAMESPACE, "name": name} | more

    def pod(name, node):
        ports = [{"containerPort": p["pod"], "hostPort": p["hostport"], "protocol": proto} for proto, p in PORTS.items()]
        container = {"name": "serve", "image": image, "imagePullPolicy": "IfNotPresent",
                     "args": ["netexec", f"--http-port={PORTS['TCP']['pod']}", f"--udp-port={PORTS['UDP']['pod']}"],
                     "readinessProbe": {"tcpSocket": {"port": PORTS["TCP"]["pod"]}, "periodSeconds": 1}}
        if name == "server":
            container["ports"] = ports
        role = "server" if name == "server" else "client"
        return {"apiVersion": "v1", "kind": "Pod", "metadata": meta(name, labels={"role": role, "weir.test/pod": name}),
                "spec": {"nodeName": node, "hostname": name, "dnsPolicy": "Default", "terminationGracePeriodSeconds": 0,
                         "enableServiceLinks": False, "automountServiceAccountToken": False, "containers": [container]}}

    def service(policy):
        ports = [{"name": proto.lower(), "protocol": proto, "port": p["service"], "targetPort": p["pod"],
                  "nodePort": node_port(policy, proto)} for proto, p in PORTS.items()]
        return {"apiVersion": "v1", "kind": "Service", "metadata": meta(SERVICES[policy][0]),
                "spec": {"type": "LoadBalancer", "externalTrafficPolicy": policy, "selector": {"role": "server"},
                         "ports": ports}}

    items = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}]
    items += [pod(*p) for p in PODS.items()] + [service(s) for s in SERVICES]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def status(family, policy):
    """What a load balancer would write into its Service: kube-proxy takes it as it is."""
    return {"loadBalancer": {"ingress": [{"ip": a} for a in load_balancer(family, policy)]}}


# --- the lines of services.txt ----------------------------------------------------------

class Line:
    """A client, a way to the server, and what is seen of it: each a word, `.` for nothing."""

    def __init__(self, client, way, egress, ingress, server, mode=None):
        self.client, self.way, self.egress, self.ingress, self.server = client, way, egress, ingress, server
        self.mode = mode
        self.open = self.server != "."

    def __str__(self):
        return f"{self.client} -> {self.way}"

    def target(self, state, protocol):
        """The address and port that the client asks."""
        kind, policy, node = (self.way.split(":") + ["", ""])[:3]
        if kind == "pod":
            return state.address["server"], PORTS[protocol]["pod"]
        if kind == "hostport":
            return state.address["node1"], PORTS[protocol]["hostport"]
        if kind == "clusterip":
            return state.cluster_ip["Cluster"], PORTS[protocol]["service"]
        if kind == "nodeport":
            return state.address[node], node_port(policy, protocol)
        if kind == "loadbalancer":
            return load_balancer(state.family, policy)[0 if node != "node2" else 1], PORTS[protocol]["service"]
        sys.exit(f"services.txt: no such way: {self.way}")


def lines(mode=None):
    """Those of one mode of kube-proxy, or all."""
    with open(f"{HERE}/services.txt") as f:
        rows = [line.split("#")[0].split() for line in f]
    for words in filter(None, rows):
        if len(words) not in (5, 6):
            sys.exit(f"services.txt: five words to a line, or six: {' '.join(words)}")
    found = [Line(*words) for words in rows if words]
    return [line for line in found if None in (mode, line.mode) or line.mode == mode]


# --- the policies, and what follows from them -------------------------------------------

class Policy:
    """A NetworkPolicy for every pod of the namespace. A direction is None (not isolated) or a list of rules, each
    a set of words of services.txt that it allows as peers (`label:ROLE` for a selector; empty: any peer) and the
    kinds of ports that it allows (empty: any)."""

    def __init__(self, name, about, ingress=None, egress=None):
        self.name, self.about, self.ingress, self.egress = name, about, ingress, egress

    def manifest(self, state):
        def peer(word):
            if word.startswith("label:"):
                return {"podSelector": {"matchLabels": {"role": word[6:]}}}
            return {"ipBlock": {"cidr": f"{state.address[word]}/{32 if state.family == 'ipv4' else 128}"}}

        def peers_of(words):
            if words == SERVED:
                addresses = [*state.cluster_ip.values(), *(a for p in SERVICES for a in load_balancer(state.family, p))]
                return [{"ipBlock": {"cidr": f"{a}/{32 if state.family == 'ipv4' else 128}"}} for a in addresses]
            return [peer(w) for w in sorted(words)]

        def rule(r, direction):
            peers, kinds = r
            ports = [{"protocol": proto, "port": n} for proto in PORTS for k in kinds for n in numbers(proto, k)]
            return ({direction: peers_of(peers)} if peers else {}) | ({"ports": ports} if ports else {})

        spec = {"podSelector": {}, "policyTypes": []}
        for direction, type_, rules in (("from", "Ingress", self.ingress), ("to", "Egress", self.egress)):
            if rules is not None:
                spec["policyTypes"].append(type_)
                spec[type_.lower()] = [rule(r, direction) for r in rules]
        return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"namespace": NAMESPACE, "name": self.name}, "spec": spec}

    def allows(self, line):
        """Whether the client gets an answer."""
        # U3: a pod to itself, translated on its own node
        itself = line.client == line.egress == line.ingress
        return line.open and (itself or self.judges(self.egress, line.egress) and self.judges(self.ingress, line.ingress))

    @staticmethod
    def judges(rules, seen):
        if rules is None or seen == ".":
            return True
        word, _, kind = seen.partition(":")
        names = {word} | ({f"label:{role(word)}"} if word in PODS else set())
        return any((not peers or peers & names) and (not kinds or (kind or "pod") in kinds) for peers, kinds in rules)


def role(pod):
    return "server" if pod == "server" else "client"


ANY = (set(), set())
POD_PORT, OTHER_PORTS = (set(), {"pod"}), (set(), {"service", "nodeport", "hostport"})
LABELS, NODES, SERVED = {"label:client", "label:server"}, {"node1", "node2"}, {"services"}
POLICIES = [
    Policy("open", "no policy"),
    Policy("deny-all", "all pods: nothing in, nothing out", [], []),
    Policy("by-label", "in and out: pods, by label", [(LABELS, set())], [(LABELS, set())]),
    Policy("by-pod-address", "in and out: pods, by `ipBlock`", [(set(PODS), set())], [(set(PODS), set())]),
    Policy("by-node-address", "in and out: nodes, by `ipBlock`", [(NODES, set())], [(NODES, set())]),
    Policy("deny-ingress", "nothing in", []),
    Policy("from-label", "in: clients, by label", [({"label:client"}, set())]),
    Policy("from-near", "in: near, by `ipBlock`", [({"near"}, set())]),
    Policy("from-node1", "in: the server's own node, by `ipBlock`", [({"node1"}, set())]),
    Policy("from-node2", "in: the other node, by `ipBlock`", [({"node2"}, set())]),
    Policy("from-outside", "in: the machine outside, by `ipBlock`", [({"outside"}, set())]),
    Policy("to-pod-port", "in: to the pod's ports", [POD_PORT]),
    Policy("to-other-ports", "in: to the Service's ports, the node's and the host's", [OTHER_PORTS]),
    Policy("deny-egress", "nothing out", None, []),
    Policy("to-label", "out: the server, by label", None, [({"label:server"}, set())]),
    Policy("to-node1", "out: node1, by `ipBlock`", None, [({"node1"}, set())]),
    Policy("to-node2", "out: node2, by `ipBlock`", None, [({"node2"}, set())]),
    Policy("to-services", "out: ClusterIPs and load balancers, by `ipBlock`", None, [(SERVED, set())]),
    Policy("out-to-pod-port", "out: to the pod's ports", None, [POD_PORT]),
    Policy("out-to-other-ports", "out: to the Service's ports, the node's and the host's", None, [OTHER_PORTS]),
]
# those that docs/services.md has a column for
COLUMNS = ["deny-all", "by-label", "by-pod-address", "by-node-address", "from-outside"]


def policy(name):
    return next((p for p in POLICIES if p.name == name), None) or sys.exit(f"services: no policy {name}")


class State:
    """The addresses of everything that has a word in services.txt."""

    def __init__(self, path):
        self.places = probe.read_state(path)
        with open(path) as f:
            items = json.load(f)["items"]
        self.address = {name: self.places[f"{NAMESPACE}/{name}"].addresses[0] for name in PODS}
        self.address |= {node: self.places[node].addresses[0] for node in ("node1", "node2")}
        self.family = "ipv6" if ":" in self.address["node1"] else "ipv4"
        self.address["outside"] = OUTSIDE[self.family]
        with open(f"{probe.RUN}/proxy") as f:
            self.mode = f.read().strip()
        self.cluster_ip = {policy: o["spec"]["clusterIP"] for o in items for policy, s in SERVICES.items()
                           if o["kind"] == "Service" and o["metadata"]["name"] == s[0]}
        self.places["fabric"] = probe.Place("fabric", [self.address["outside"]], None)
        self.fds = probe.open_namespaces(self.places)

    def place(self, client):
        return self.places["fabric" if client == "outside" else f"{NAMESPACE}/{client}" if client in PODS else client]

    def word(self, address):
        """How services.txt calls an address; what has no word there stays as it is."""
        words = {a: name for node in ("node2", "node1") for a in own_addresses(node) for name in [node]}
        return (words | {a: name for name, a in self.address.items()}).get(address, address)


def seen_word(state, address, port):
    """An address and a port; the pod's port goes without saying."""
    kind = next((k for proto in PORTS for k in PORTS[proto] if int(port) in numbers(proto, k)), str(port))
    return state.word(address) + ("" if kind == "pod" else f":{kind}")


def nsenter(place, *command):
    with open(f"{probe.RUN}/{place}/init.pid") as f:
        pid = f.read().strip()
    return ["nsenter", "-t", pid, "-n", "--", *command]


def run(command, text=None):
    return subprocess.run(command, input=text, text=True, check=True, capture_output=True).stdout


@functools.cache
def own_addresses(node):
    """All addresses of a node, those towards its pods as well."""
    return {a["local"] for link in json.loads(run(nsenter(node, "ip", "-j", "addr"))) for a in link["addr_info"]}


# --- packets ----------------------------------------------------------------------------

class Ask(probe.Check):
    """A line of services.txt over one protocol; the server says whom it sees."""

    def __init__(self, state, line, protocol, expected):
        super().__init__(state.place(line.client), state.places[f"{NAMESPACE}/server"], PORTS[protocol]["pod"], protocol,
                         line.way, line.target(state, protocol), expected)
        self.question = "clientip"
        self.text = f"{line} {protocol}"

    def judge(self, answer):
        m = re.fullmatch(r"\[?(?:::ffff:)?([0-9a-f.:]+?)\]?:\d+", answer)
        return f"passed {m[1]}" if m else f"answered by '{answer}'"

    def right(self, result):
        return result.startswith("passed ") if self.expected else result == "timed out"


WATCH = """
table inet watch {{
    set seen {{
        typeof iifname . {ip} saddr . {ip} daddr . th dport
        flags dynamic
        size 65535
    }}
    chain seen {{
        type filter hook forward priority filter
        ct state new meta l4proto {{ tcp, udp }} update @seen {{ iifname . {ip} saddr . {ip} daddr . th dport }}
    }}
}}
"""


def seen(node):
    """(interface, source, destination, port) of what was forwarded since it was asked last."""
    answer = json.loads(run(nsenter(node, "nft", "-n", "-j", "list set inet watch seen")))
    run(nsenter(node, "nft", "flush set inet watch seen"))
    elements = next(o["set"] for o in answer["nftables"] if "set" in o).get("elem", [])
    return [tuple(e["concat"] if "concat" in e else e["elem"]["val"]["concat"]) for e in elements]


def observe(state):
    """What the forward hooks, at the priority of Weir's chains, see of each line: of one after the other."""
    nodes, checks, verdicts = ("node1", "node2"), [], []
    for node in nodes:
        run(nsenter(node, "nft", "-f", "-"), WATCH.format(ip="ip" if state.family == "ipv4" else "ip6"))
    try:
        for line in lines(state.mode):
            for protocol in PORTS:
                for node in nodes:
                    seen(node)
                ask = Ask(state, line, protocol, line.open)
                result = probe.once([ask], state.fds)[0]
                at = {node: seen(node) for node in nodes}
                # what comes back to its own node by eth0 does not leave the pod a second time
                leaves = [(d, port) for i, s, d, port in at.get(PODS.get(line.client), [])
                          if s == state.address[line.client] and i != "eth0"]
                comes = [(s, port) for _, s, d, port in at[PODS["server"]] if d == state.address["server"]]
                egress, ingress = ({seen_word(state, *f) for f in found} or {"."} for found in (leaves, comes))
                server = {state.word(result.split()[1]) if result.startswith("passed ") else "."}
                found = f"{' and '.join(egress)}, {' and '.join(ingress)}, {' and '.join(server)}"
                right = (egress, ingress, server) == ({line.egress}, {line.ingress}, {line.server}) and ask.right(result)
                checks.append(ask)
                verdicts.append((right, f"{found} ({result}); services.txt has {line.egress}, {line.ingress}, {line.server}"))
    finally:
        for node in nodes:
            run(nsenter(node, "nft", "delete table inet watch"))
    return checks, verdicts


def check(state, name, within, log):
    """Every line of services.txt that somebody answers while there is no policy, under one."""
    checks = [Ask(state, line, protocol, policy(name).allows(line)) for line in lines(state.mode) for protocol in PORTS
              if line.open or name == "open"]
    return probe.check(checks, state.fds, within, log)


# --- the tables of docs/services.md -------------------------------------------------------

def tables():
    head = ["client", "way", "egress policy sees", "ingress policy sees", "the server sees", "no policy"] + COLUMNS
    rows = [head, ["---"] * len(head)]
    for line in lines():
        way = line.way.replace(":", " ") + (f" (kube-proxy {line.mode})" if line.mode else "")
        sees = [w.replace(":", " ").replace(".", "-") for w in (line.egress, line.ingress, line.server)]
        verdicts = ["yes" if policy(p).allows(line) else "no" for p in ["open", *COLUMNS]]
        rows.append([line.client, way, *sees, *verdicts])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("objects")
    verb.add_argument("image")
    verb = verbs.add_parser("status")
    verb.add_argument("family", choices=["ipv4", "ipv6"])
    verb.add_argument("policy", choices=SERVICES)
    verbs.add_parser("policies")
    verb = verbs.add_parser("about")
    verb.add_argument("name")
    verb = verbs.add_parser("policy")
    verb.add_argument("name")
    verb.add_argument("state")
    verb = verbs.add_parser("observe")
    verb.add_argument("state")
    verb.add_argument("--log")
    verb = verbs.add_parser("check")
    verb.add_argument("state")
    verb.add_argument("policy")
    verb.add_argument("--within", type=float, default=0.0, help="seconds until all must be right")
    verb.add_argument("--log", help="gets a line for every check")
    verbs.add_parser("tables")
    args = parser.parse_args()
    if args.verb == "objects":
        json.dump(objects(args.image), sys.stdout)
    elif args.verb == "status":
        json.dump({"status": status(args.family, args.policy)}, sys.stdout)
    elif args.verb == "policies":
        print(*(p.name for p in POLICIES if p.name != "open"))
    elif args.verb == "about":
        print(policy(args.name).about)
    elif args.verb == "policy":
        json.dump(policy(args.name).manifest(State(args.state)), sys.stdout)
    elif args.verb == "observe":
        sys.exit(probe.report(*observe(State(args.state)), args.log))
    elif args.verb == "check":
        sys.exit(check(State(args.state), args.policy, args.within, args.log))
    else:
        print(tables(), end="")


if __name__ == "__main__":
    main()
