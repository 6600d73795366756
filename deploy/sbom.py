#!/usr/bin/env python3
"""sbom.py: what an image is made of, as CycloneDX, and the licences of the crates in its programs.

    crates_locked(roots)   from Cargo.lock and the workspace's manifests alone: all that these programs may be built of,
                           other platforms' and what only builds need included, tests' not
    crates_built(roots)    from cargo, which must have fetched them: what is in the programs, with licences and their texts
    cyclonedx(...)         the document

image.py uses it. As a program it prints the crates of weir-agent and weir-controller: sbom.py [--locked]
"""
import glob
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
import uuid
from datetime import datetime, timezone

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAMS = ["weir-agent", "weir-controller"]
TEXTS = re.compile(r"(LICEN[SC]E|COPYING|COPYRIGHT|NOTICE|UNLICENSE)", re.I)


def load(path):
    with open(path, "rb") as f:
        return tomllib.load(f)


def lock():
    """(name, version) -> the package, as Cargo.lock has it."""
    return {(p["name"], p["version"]): p for p in load(os.path.join(ROOT, "Cargo.lock"))["package"]}


def manifests():
    """Of each crate of the workspace: the names of the crates that it is built of, tests apart."""
    found = {}
    for path in glob.glob(os.path.join(ROOT, "crates", "*", "Cargo.toml")) + glob.glob(os.path.join(ROOT, "e2e", "*", "Cargo.toml")):
        manifest = load(path)
        tables = [manifest, *manifest.get("target", {}).values()]
        names = set()
        for table in tables:
            for kind in ("dependencies", "build-dependencies"):
                for name, what in table.get(kind, {}).items():
                    names.add(what.get("package", name) if isinstance(what, dict) else name)
        found[manifest["package"]["name"]] = names
    return found


def walk(roots, below):
    """Everything that is below the roots, and they themselves."""
    seen, todo = set(), list(roots)
    while todo:
        one = todo.pop()
        if one not in seen:
            seen.add(one)
            todo.extend(below(one))
    return seen


def crates_locked(roots):
    packages, ours = lock(), manifests()
    by_name = {}
    for key in packages:
        by_name.setdefault(key[0], []).append(key)

    def below(key):
        for text in packages[key].get("dependencies", []):
            name, *version = text.split(" ")
            if "source" not in packages[key] and name not in ours.get(key[0], set()):
                continue
            yield (name, version[0]) if version else by_name[name][0]

    keys = walk([key for key in packages if key[0] in roots and "source" not in packages[key]], below)
    return [crate(key, sorted(set(below(key)) & keys), packages[key]) for key in sorted(keys)]


def crates_built(roots):
    """Dies with cargo's words if it does not know all crates."""
    triple = re.search(r"^host: (.*)$", run("rustc", "-vV"), re.M)[1]
    told = json.loads(run("cargo", "metadata", "--locked", "--offline", "--format-version=1", "--filter-platform", triple))
    packages = {p["id"]: p for p in told["packages"]}
    nodes = {n["id"]: n for n in told["resolve"]["nodes"]}

    def below(one):
        return [d["pkg"] for d in nodes[one]["deps"] if any(kind["kind"] is None for kind in d["dep_kinds"])]

    starts = [p["id"] for p in told["packages"] if p["name"] in roots and p["source"] is None]
    # a macro runs in the compiler; what it is made of is in no program
    macro = {i for i, p in packages.items() if any("proc-macro" in t["kind"] for t in p["targets"])}
    ids = walk(starts, lambda one: [b for b in below(one) if b not in macro])
    locked, key = lock(), lambda i: (packages[i]["name"], packages[i]["version"])
    found = []
    for one in sorted(ids, key=key):
        made = crate(key(one), sorted(key(b) for b in below(one) if b in ids), locked[key(one)])
        made["licence"] = (packages[one]["license"] or "").replace("/", " OR ") or None
        folder = os.path.dirname(packages[one]["manifest_path"])
        made["texts"] = [text(os.path.join(folder, name)) for name in sorted(os.listdir(folder))
                         if TEXTS.match(name) and os.path.isfile(os.path.join(folder, name))]
        found.append(made)
    return found


def crate(key, below, locked):
    name, version = key
    return {"name": name, "version": version, "below": below, "ours": "source" not in locked,
            "sha256": locked.get("checksum"), "licence": None, "texts": []}


def text(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read().replace("\r\n", "\n").strip() + "\n"


def run(*command):
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    except FileNotFoundError:
        sys.exit(f"sbom.py: {command[0]} is missing: it tells what the programs are made of")
    except subprocess.CalledProcessError as e:
        sys.exit(f"sbom.py: {' '.join(command)}: {e.stderr.strip()} (cargo fetch --locked?)")


def licences(crates):
    """Each text once, with the crates that come with it; and crates that come with none."""
    by_text, without = {}, []
    for one in (c for c in crates if not c["ours"]):
        name = f"{one['name']} {one['version']}"
        for each in one["texts"]:
            by_text.setdefault(each, []).append(name)
        if not one["texts"]:
            without.append(f"{name}: {one['licence']}")
    out = ["What other crates in these programs ask to be told. Packages of the base have theirs in /usr/share/doc.\n"]
    for each, names in sorted(by_text.items(), key=lambda pair: pair[1]):
        out.append("=" * 78 + "\n" + ", ".join(names) + "\n\n" + each)
    if without:
        out.append("=" * 78 + "\nWithout a text of their own:\n\n" + "\n".join(without) + "\n")
    return "\n".join(out)


def package_url(name, version):
    return f"pkg:cargo/{name}@{version}"


def cyclonedx(name, version, time, crates, debian):
    """`debian`: of each package its name, version, architecture and the release's name."""
    components, depends = [], []
    for one in crates:
        url = package_url(one["name"], one["version"])
        component = {"type": "library", "bom-ref": url, "name": one["name"], "version": one["version"], "purl": url}
        if one["sha256"]:
            component["hashes"] = [{"alg": "SHA-256", "content": one["sha256"]}]
        licence = "Apache-2.0" if one["ours"] else one["licence"]
        if licence:
            component["licenses"] = [{"expression": licence}]
        components.append(component)
        depends.append({"ref": url, "dependsOn": [package_url(*below) for below in one["below"]]})
    for package, of_version, architecture, release in debian:
        # in a package URL, + and : of versions are written so
        quoted = of_version.replace("+", "%2B").replace(":", "%3A")
        url = f"pkg:deb/{release.split('-')[0]}/{package}@{quoted}?arch={architecture}&distro={release}"
        components.append({"type": "library", "bom-ref": url, "name": package, "version": of_version, "purl": url})
    content = json.dumps(components, sort_keys=True).encode()
    top = f"pkg:oci/{name}@{version}"
    depends.append({"ref": top, "dependsOn": [c["bom-ref"] for c in components
                                              if c["name"] in PROGRAMS or c["purl"].startswith("pkg:deb")]})
    return json.dumps({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, hashlib.sha256(content).hexdigest())}",
        "metadata": {
            "timestamp": datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {"type": "container", "bom-ref": top, "name": name, "version": version},
        },
        "components": components, "dependencies": depends}, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for each in (crates_locked if "--locked" in sys.argv[1:] else crates_built)(PROGRAMS):
        print(each["name"], each["version"], each["licence"] or "")
