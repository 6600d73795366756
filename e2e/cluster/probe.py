#!/usr/bin/env python3
"""Asks over real packets which pods and nodes reach which, and compares with a table.

    probe.py check STATE [--within S]   the tables on stdin, once or until all is right
    probe.py watch STATE                the tables again and again, until SIGTERM

STATE is what `kubectl get pods,services -A -o json` says. It sends from the sources' own
network namespaces, all pairs at once: a denied connection costs its timeout, so all the
tables together cost one timeout.

Tables are those of policy-examples (see the README there), and nodes may be in them, too:

    80/TCP      shop/web  shop/db  node1
    shop/web    .         pass     drop
    node2       pass      drop     drop

A pod is asked by its address and, where a Service of its name and namespace has that port,
by the ClusterIP. `open` in place of tables: each pod reaches the others on one port of each
protocol; of more than 25 others it asks every second, third..., so that few packets are under way.
What passes must be answered by that very pod; what drops must be met by silence (a refusal is
neither, U10). Prints a line for what each source found, and one for each check that is wrong;
--log FILE gets a line for every check.
"""
import argparse
import array
import ctypes
import errno
import json
import os
import re
import selectors
import signal
import socket
import sys
import time

DENIED_AFTER = 1.0    # silence of so many seconds is a denial
PASSED_WITHIN = 4.0   # what ought to pass has more time: the machine may be busy
ASKED = 25            # so many others each pod tries for `open`, at most: few enough for 2 cores
MANY = 24             # so many wrong checks are printed, and no more
KUBELET = 10250       # speaks TLS: the connection alone is the answer
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
RUN = os.path.join(os.environ.get("WEIR_CLUSTER_HOME", "/opt/weir-cluster"), "run")


class Place:
    """A pod or a node: where to send from, and which addresses it has."""

    def __init__(self, name, addresses, hostname, uid=None):
        self.name, self.addresses, self.hostname, self.uid = name, addresses, hostname, uid
        self.services = {}     # (its own port, protocol) -> [(ClusterIP, port)]


def read_state(path):
    """The pods (by namespace/name) and the nodes (by name)."""
    with open(path) as f:
        items = json.load(f)["items"]
    places = {}
    for o in (o for o in items if o["kind"] == "Pod" and o["status"].get("podIPs")):
        meta, spec = o["metadata"], o["spec"]
        if spec.get("hostNetwork") or meta.get("deletionTimestamp"):
            continue
        name = f"{meta['namespace']}/{meta['name']}"
        places[name] = Place(name, [i["ip"] for i in o["status"]["podIPs"]], spec.get("hostname"), meta["uid"])
        # its kubelet listens on the first family's alone
        places.setdefault(spec["nodeName"], Place(spec["nodeName"], [o["status"]["hostIP"]], None))
    for o in (o for o in items if o["kind"] == "Service"):
        p = places.get(f"{o['metadata']['namespace']}/{o['metadata']['name']}")
        for port in o["spec"]["ports"] if p else []:
            key = port["targetPort"], port.get("protocol", "TCP")
            p.services[key] = [(ip, port["port"]) for ip in o["spec"]["clusterIPs"]]
    return places


def open_namespaces(places):
    """A descriptor of each place's network namespace: a node's from its first process, a
    pod's from any process in its cgroup that is not in a node's namespace."""
    fds, nodes, pods = {}, set(), {p.uid: p for p in places.values() if p.uid}
    for p in (p for p in places.values() if not p.uid):
        with open(f"{RUN}/{p.name}/init.pid") as f:
            fds[p.name] = os.open(f"/proc/{f.read().strip()}/ns/net", os.O_RDONLY)
        nodes.add(os.fstat(fds[p.name]).st_ino)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cgroup") as f:
                m = re.search(r"pod([0-9a-f-]{36})", f.read())
            p = m and pods.get(m[1])
            if not p or p.name in fds:
                continue
            fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        except OSError:
            continue            # it has ended meanwhile
        if os.fstat(fd).st_ino in nodes:
            os.close(fd)
        else:
            fds[p.name] = fd
    return fds


class Check:
    """One thing to try: from a place to an address, with what is to come of it."""

    def __init__(self, source, target, port, protocol, way, address, expected):
        self.source, self.target, self.expected = source, target, expected
        self.protocol, self.address = protocol, address
        # what is asked over HTTP or UDP; None: the connection alone is the answer
        self.question = None if port == KUBELET else "hostname"
        self.hostname = target.hostname
        self.text = f"{source.name} -> {target.name} {port}/{protocol} {way}"

    def judge(self, answer):
        """What the answer to the question means."""
        return "passed" if answer == self.hostname else f"answered by '{answer}'"

    def right(self, result):
        return result == ("passed" if self.expected else "timed out")


def parse_tables(text, places):
    if text.split() == ["open"]:
        return everything(places)
    checks, head = [], None
    for words in filter(None, (line.split("#")[0].split() for line in text.splitlines())):
        unknown = [w for w in words if "/" in w and not w[0].isdigit() and w not in places]
        if unknown:
            sys.exit(f"probe: no such pod: {', '.join(unknown)} (there are {', '.join(sorted(places))})")
        m = re.fullmatch(r"(\d+)/(TCP|UDP)", words[0])
        if m:
            port, protocol, head = int(m[1]), m[2], words[1:]
            continue
        if head is None or len(words) != len(head) + 1 or set(words[1:]) - {"pass", "drop", "."}:
            sys.exit(f"probe: cannot read the line of {words[0]}")
        for target, cell in zip(head, words[1:]):
            if cell != ".":
                checks += ways(places[words[0]], places[target], port, protocol, cell == "pass")
    return checks


def everything(places):
    """Each pod reaches others, on one port of each protocol: all, or so many as ASKED, spread evenly."""
    pods = [p for p in places.values() if p.uid and p.services]
    step = max(1, -(-(len(pods) - 1) // ASKED))
    return [c for n, t in enumerate(pods) for port in {protocol: port for port, protocol in sorted(t.services)}.items()
            for s in (pods[(n + k) % len(pods)] for k in range(1, len(pods), step)) for c in ways(s, t, port[1], port[0], True)]


def ways(source, target, port, protocol, expected):
    """The same by each address that there is."""
    found = [("by address", (ip, port)) for ip in target.addresses]
    found += [("by ClusterIP", a) for a in target.services.get((port, protocol), [])]
    many = len(target.addresses) > 1
    return [Check(source, target, port, protocol, way + (" (IPv6)" if many and ":" in a[0] else ""), a, expected)
            for way, a in found]


class Attempt:
    """One connection under way."""

    def __init__(self, check, now):
        self.check, self.result, self.read = check, None, b""
        self.deadline = now + (PASSED_WITHIN if check.expected else DENIED_AFTER)
        self.asked = False
        tcp = check.protocol == "TCP"
        self.sock = socket.socket(socket.AF_INET6 if ":" in check.address[0] else socket.AF_INET,
                                  socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        e = self.sock.connect_ex(check.address)
        if e not in (0, errno.EINPROGRESS):
            self.end(os.strerror(e))

    def end(self, result):
        self.result = result
        self.sock.close()

    def wants(self):
        return selectors.EVENT_READ if self.asked else selectors.EVENT_WRITE

    def step(self):
        """The socket is ready: ask, or read the answer."""
        try:
            if not self.asked:
                e = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if e:
                    return self.end(os.strerror(e))
                if self.check.question is None:
                    return self.end("passed")
                tcp = self.check.protocol == "TCP"
                self.sock.send((f"GET /{self.check.question} HTTP/1.0\r\n\r\n" if tcp else f"{self.check.question}\n").encode())
                self.asked = True
                return None
            data = self.sock.recv(4096)
        except BlockingIOError:
            return None
        except OSError as e:
            return self.end(os.strerror(e.errno))
        self.read += data
        if data and self.check.protocol == "TCP":
            return None
        return self.end(self.check.judge(self.read.split(b"\r\n\r\n")[-1].decode(errors="replace").strip()))


def enter(fd):
    if LIBC.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Batch:
    """The attempts under way of one source."""

    def __init__(self):
        self.selector, self.live = selectors.DefaultSelector(), set()

    def add(self, attempt):
        if attempt.result is None:
            self.live.add(attempt)
            self.selector.register(attempt.sock, attempt.wants(), attempt)

    def turn(self, until):
        """Waits for something to happen, or the time; those that ended."""
        now, ended = time.monotonic(), []
        ready = self.selector.select(max(0.0, min([until] + [a.deadline for a in self.live]) - now))
        for key, _ in ready:
            a = key.data
            self.selector.unregister(a.sock)
            a.step()
            if a.result is None:
                self.selector.register(a.sock, a.wants(), a)
        now = time.monotonic()
        for a in list(self.live):
            if a.result is None and now >= a.deadline:
                self.selector.unregister(a.sock)
                a.end("timed out")
            if a.result is not None:
                self.live.discard(a)
                ended.append(a)
        return ended


def in_each_namespace(checks, fds, work):
    """Runs work(numbers of its checks, pipe) in a process per source; all that they wrote."""
    by_source = {}
    for i, c in enumerate(checks):
        by_source.setdefault(c.source.name, []).append(i)
    children = []
    for name, numbers in by_source.items():
        if name not in fds:
            sys.exit(f"probe: no process of {name} found")
        r, w = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(r)
                enter(fds[name])
                with os.fdopen(w, "w") as out:
                    work(numbers, out)
                os._exit(0)
            except BaseException as e:
                print(f"probe: {name}: {e!r}", file=sys.stderr)
                os._exit(1)
        os.close(w)
        children.append((pid, r))
    return children


def collect(children):
    lines = []
    for pid, r in children:
        with os.fdopen(r) as f:
            lines += [line.rstrip("\n").split("\t") for line in f]
        if os.waitpid(pid, 0)[1]:
            sys.exit("probe: a sender failed")
    return lines


def once(checks, fds):
    """The result of every check."""
    def work(numbers, out):
        batch = Batch()
        attempts = {}
        for i in numbers:
            a = attempts[i] = Attempt(checks[i], time.monotonic())
            batch.add(a)
        while batch.live:
            batch.turn(time.monotonic() + 1)
        out.writelines(f"{i}\t{a.result}\n" for i, a in attempts.items())

    results = [None] * len(checks)
    for i, result in collect(in_each_namespace(checks, fds, work)):
        results[int(i)] = result
    return results


def report(checks, verdicts, log):
    """Prints what each source found and what is wrong; verdicts are (right, what came)."""
    sources, lines = {}, []
    for c, (right, came) in zip(checks, verdicts):
        ought = "pass" if c.expected else "drop"
        counts = sources.setdefault(c.source.name, {"pass": 0, "drop": 0, "wrong": 0})
        counts[ought if right else "wrong"] += 1
        lines.append(f"ok    {c.text}: {ought}" if right else f"WRONG {c.text}: {came}, ought to {ought}")
    for name, n in sources.items():
        print(f"{'WRONG' if n['wrong'] else 'ok   '} {name}: {n['pass']} pass and {n['drop']} drop as they ought to"
              + (f", {n['wrong']} do not" if n["wrong"] else ""))
    wrong = [line for line in lines if line.startswith("WRONG")]
    for line in wrong[:MANY]:
        print("     ", line)
    if len(wrong) > MANY:
        print(f"      and {len(wrong) - MANY} more")
    if log:
        with open(log, "a") as f:
            f.writelines(line + "\n" for line in lines)
    return 0 if all(v[0] for v in verdicts) else 1


def check(checks, fds, within, log):
    """Right once is not enough where it had to be waited for: it must stay right."""
    start = time.monotonic()
    asked = start
    results = once(checks, fds)

    def all_right():
        return all(c.right(r) for c, r in zip(checks, results))

    while not all_right() and time.monotonic() - start < within:
        asked = time.monotonic()
        results = once(checks, fds)
    if within and all_right():
        print(f"      in force after {asked - start:.1f} s at most")
        results = once(checks, fds)
    return report(checks, [(c.right(r), r) for c, r in zip(checks, results)], log)


def watch(checks, fds, every, log):
    """Tries each check every so many seconds until SIGTERM; not one may come out wrong."""
    stop = []

    def work(numbers, out):
        batch, count, wrong = Batch(), array.array("L", [0] * len(checks)), {}
        index = {id(checks[i]): i for i in numbers}
        due = time.monotonic()
        while not stop or batch.live:
            if not stop and time.monotonic() >= due:
                for i in numbers:
                    a = Attempt(checks[i], time.monotonic())
                    batch.add(a)
                    if a.result is not None:
                        wrong[i] = a.result
                due = max(due + every, time.monotonic())
            for a in batch.turn(due if not stop else time.monotonic() + 1):
                i = index[id(a.check)]
                count[i] += 1
                if not a.check.right(a.result):
                    wrong.setdefault(i, f"after {count[i]} attempts: {a.result}")
        out.writelines(f"{i}\t{count[i]}\t{wrong.get(i, '')}\n" for i in numbers)

    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    children = in_each_namespace(checks, fds, work)
    print("      watching", file=sys.stderr, flush=True)
    while not stop:
        time.sleep(0.05)
    for pid, _ in children:
        os.kill(pid, signal.SIGTERM)
    verdicts, total = [None] * len(checks), 0
    for i, count, wrong in collect(children):
        verdicts[int(i)] = (not wrong and int(count) > 0, wrong or "never tried")
        total += int(count)
    print(f"      {total} attempts")
    return report(checks, verdicts, log)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("verb", choices=["check", "watch"])
    parser.add_argument("state")
    parser.add_argument("--within", type=float, default=0.0, help="seconds until all must be right")
    parser.add_argument("--every", type=float, default=0.05, help="seconds between two attempts of a watch")
    parser.add_argument("--log", help="gets a line for every check")
    args = parser.parse_args()
    places = read_state(args.state)
    checks = parse_tables(sys.stdin.read(), places)
    if not checks:
        sys.exit("probe: nothing to check")
    fds = open_namespaces(places)
    if args.verb == "check":
        sys.exit(check(checks, fds, args.within, args.log))
    sys.exit(watch(checks, fds, args.every, args.log))


if __name__ == "__main__":
    main()
