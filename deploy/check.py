#!/usr/bin/env python3
"""check.py: the Dockerfile makes the image that image.py makes, and the SBOM is of this Cargo.lock. No Docker is needed.

What is in the image is written by image.py in both cases; what the Dockerfile says itself, user, environment, labels, base,
is held against it here. Part of check.sh.
"""
import json
import os
import re
import sys

sys.dont_write_bytecode = True
import image  # noqa: E402
import sbom  # noqa: E402

wrong = []


def expect(right, what):
    if not right:
        wrong.append(what)


def instructions(text):
    """(name, rest) of each instruction, lines that go on joined."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.M)
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


def stages(text):
    found, before = [], []
    for name, rest in instructions(text):
        if name == "FROM":
            found.append([])
        (found[-1] if found else before).append((name, rest))
    return before, found


def dockerfile(text):
    before, found = stages(text)
    known = {"FROM", "ARG", "ENV", "LABEL", "RUN", "COPY", "WORKDIR", "USER", "SHELL"}
    expect({name for stage in found for name, _ in stage} <= known, "an instruction that this check does not know")
    expect(len(found) == 2, "two stages: one that builds, one that is the image")
    build, last = found[0], found[-1]
    arguments = dict(rest.split("=", 1) for name, rest in before if name == "ARG" and "=" in rest)
    expect(build[0][1] == "${DEBIAN} AS build", "the first stage is Debian's")
    expect(re.fullmatch(r"debian:[a-z]+-[0-9]{8}-slim(@sha256:[0-9a-f]{64})?", arguments.get("DEBIAN", "")),
           "the base is pinned to a day")
    day = re.search(r"-([0-9]{8})-", arguments.get("DEBIAN", ""))
    expect(day and arguments.get("SNAPSHOT", "").startswith(day[1]), "packages are of the base's day")
    toolchain = sbom.load(os.path.join(sbom.ROOT, "rust-toolchain.toml"))["toolchain"]["channel"]
    expect(("ARG", f"RUST={toolchain}") in build, f"the toolchain is rust-toolchain.toml's, {toolchain}")
    runs = [rest for name, rest in build if name == "RUN"]
    expect(any("cargo build --release --locked " in rest for rest in runs), "it builds what Cargo.lock says")
    made = [re.search(r"image\.py --root (\S+) (.*)$", rest) for rest in runs]
    made = next((m for m in made if m), None)
    expect(made, "image.py writes the files")
    programs = sorted(os.path.basename(path) for path in made[2].split()) if made else []
    expect(programs == sbom.PROGRAMS, f"the programs are {sbom.PROGRAMS}")
    expect(not any("ipset" in rest for rest in runs), "no ipsets: such an image must not be handed on")
    # the image itself
    expect(last[0][1] == "scratch", "the image begins with nothing")
    copies = [rest for name, rest in last if name == "COPY"]
    expect(made and copies == [f"--from=build --chown=0:0 {made[1]}/ /"], "it is what image.py wrote, and root's")
    expect(not any(name == "RUN" for name, _ in last), "and nothing else")
    expect([rest for name, rest in last if name == "USER"] == [f"{image.USER}:{image.USER}"], f"the user is {image.USER}")
    expect([rest for name, rest in last if name == "ENV"] == ["PATH=/usr/bin"], "the environment is image.py's")
    expect([rest for name, rest in last if name == "WORKDIR"] == ["/"], "the folder is /")
    expect(not any(name in ("ENTRYPOINT", "CMD") for name, _ in last), "no entry point: image.py has none")
    labels = dict(re.findall(r'([a-z.]+)="([^"]*)"', " ".join(rest for name, rest in last if name == "LABEL")))
    wanted = image.labels(sbom.PROGRAMS)
    expect(labels.keys() == wanted.keys(), f"labels: {sorted(labels.keys() ^ wanted.keys())}")
    for key in labels.keys() & wanted.keys():
        if not key.endswith((".version", ".revision")):
            expect(labels[key] == wanted[key], f"label {key}: {labels[key]!r}, and image.py has {wanted[key]!r}")
    version = [rest for name, rest in last if name == "ARG" and rest.startswith("VERSION=")]
    expect(version == [f"VERSION={image.version()}"], f"the version is {image.version()}")


def bill():
    locked = sbom.lock()
    built, may_be = sbom.crates_built(sbom.PROGRAMS), sbom.crates_locked(sbom.PROGRAMS)
    names = {(c["name"], c["version"]) for c in built}
    expect(names <= {(c["name"], c["version"]) for c in may_be}, "what is in the programs may be, by Cargo.lock")
    expect({("weir-agent", image.version()), ("tokio", next(v for n, v in locked if n == "tokio"))} <= names, "agent and tokio")
    expect(not any(name in ("proptest", "tempfile") for name, _ in names), "no crates of tests")
    expect(all(c["licence"] for c in built), "every crate has a licence")
    expect(all(c["sha256"] for c in built if not c["ours"]), "and a checksum, if it is not ours")
    text = sbom.cyclonedx("weir", "1", 0, built, [("libc6", "2.36-9+deb12u1", "amd64", "debian-12")])
    expect(text == sbom.cyclonedx("weir", "1", 0, built, [("libc6", "2.36-9+deb12u1", "amd64", "debian-12")]), "the same twice")
    told = json.loads(text)
    refs = [c["bom-ref"] for c in told["components"]] + [told["metadata"]["component"]["bom-ref"]]
    expect(len(refs) == len(set(refs)) == len(built) + 2, "each component once")
    expect(all(d["ref"] in refs and set(d["dependsOn"]) <= set(refs) for d in told["dependencies"]), "dependencies are there")
    expect("pkg:deb/debian/libc6@2.36-9%2Bdeb12u1?arch=amd64&distro=debian-12" in refs, "packages of the base")
    licences = sbom.licences(built)
    missing = [c["name"] for c in built if not c["ours"] and f"{c['name']} {c['version']}" not in licences]
    expect(not missing, f"licences of {missing}")


with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "Dockerfile"), encoding="utf-8") as f:
    dockerfile(f.read())
bill()
for what in wrong:
    print(f"WRONG {what}")
sys.exit(bool(wrong))
