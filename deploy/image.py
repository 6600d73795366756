#!/usr/bin/env python3
"""image.py [--name NAME] [--for-tests] OUT.tar BINARY...: an OCI image archive without Docker.
image.py --root DIR BINARY...: the files of that image, for deploy/Dockerfile, which is the other way to make it.

    layer 1: what the binaries need, from the Debian packages of this machine (Ubuntu's, too): the
             shared libraries that ldd finds, their packages' copyright files, and for scanners of
             vulnerabilities what dpkg knows of these packages. No shell, no package manager.
    layer 2: the binaries, stripped, in /usr/bin; in /usr/share/doc/weir Weir's licence, those of the crates in the
             binaries (third-party.txt), and what all of it is made of (sbom.cdx.json, CycloneDX).

The same packages and binaries give the same bytes: files are sorted and belong to root; times are 1970 in
layer 1, so that it changes with its packages only, and the commit's (or SOURCE_DATE_EPOCH) elsewhere. To be built on the oldest release that is at hand, as
the binaries are. Needs: dpkg, ldd, strip, cargo with what it has fetched for the binaries; no root, no network.

--for-tests takes an agent with the feature `ipset`, which must not be handed on (see NOTICE), compresses less, and
needs no cargo: third-party.txt is missing, and sbom.cdx.json says what Cargo.lock does.
"""
import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
from datetime import datetime, timezone

sys.dont_write_bytecode = True
import sbom  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
USER = 65532
# Of a package only what is loaded; its licence, and what it is, come along.
COPYRIGHT, STATUS = "usr/share/doc/{}/copyright", "var/lib/dpkg/status.d/{}"


def die(text):
    sys.exit(f"image.py: {text}")


def run(*command):
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}).stdout
    except FileNotFoundError:
        die(f"{command[0]} is missing (packages dpkg, libc-bin, binutils, git)")
    except subprocess.CalledProcessError as e:
        die(f"{' '.join(command)}: {e.stderr.strip() or e.stdout.strip()}")


def commit(*question):
    """What git says of the commit that this is; nothing, where there is no git."""
    done = subprocess.run(["git", "-C", ROOT, *question], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


# --- the base: libraries by package -----------------------------------------------------

def libraries(binaries):
    """Paths by which the binaries' loader finds what they are linked with, itself included."""
    found = set()
    for binary in binaries:
        for line in run("ldd", binary).splitlines():
            if "not found" in line:
                die(f"{binary}: {line.strip()}: install the package that it was built with")
            m = re.search(r"(?:=> )?(/\S+) \(0x", line)
            if m:
                found.add(m[1])
    return found


def package(path):
    """The package that a file belongs to. dpkg knows it by one of its paths, before or after /usr was merged."""
    real = os.path.realpath(path)
    for candidate in (path, real, real.removeprefix("/usr"), "/usr" + path):
        done = subprocess.run(["dpkg", "-S", candidate], capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.split(":")[0]
    return die(f"{path} belongs to no package: build with the distribution's libraries")


class Tree:
    """Files of a layer, by path, in the order in which a tar has them."""

    def __init__(self):
        self.entries = {}

    def parents(self, path):
        while path := os.path.dirname(path):
            self.entries.setdefault(path, (tarfile.DIRTYPE, 0o755, b""))

    def add(self, path, content, mode=0o644, kind=tarfile.REGTYPE):
        self.parents(path)
        self.entries[path] = (kind, mode, content)

    def write(self, folder):
        """The same as files, as who calls this: who copies them makes them root's."""
        os.makedirs(folder, exist_ok=True)
        for path, (kind, mode, content) in sorted(self.entries.items()):
            at = os.path.join(folder, path)
            if kind == tarfile.DIRTYPE:
                os.makedirs(at, exist_ok=True)
            elif kind == tarfile.SYMTYPE:
                os.symlink(content, at)
            else:
                with open(at, "wb") as f:
                    f.write(content)
            if kind != tarfile.SYMTYPE:
                os.chmod(at, mode)

    def tar(self, time):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as t:
            for path, (kind, mode, content) in sorted(self.entries.items()):
                info = tarfile.TarInfo(path)
                info.type, info.mode, info.mtime = kind, mode, time
                info.uname = info.gname = "root"
                if kind == tarfile.SYMTYPE:
                    info.linkname = content
                    t.addfile(info)
                else:
                    info.size = len(content)
                    t.addfile(info, io.BytesIO(content))
        return raw.getvalue()


def read(path):
    with open(path, "rb") as f:
        return f.read()


def base(paths):
    """The first layer, and the names of its packages."""
    tree = Tree()
    for name in ("bin", "lib", "lib64", "sbin"):
        tree.add(name, f"usr/{name}", 0o777, tarfile.SYMTYPE)
        tree.add(f"usr/{name}", b"", 0o755, tarfile.DIRTYPE)
    tree.add("tmp", b"", 0o1777, tarfile.DIRTYPE)
    for name in ("dev", "proc", "run", "sys", "etc", "var/lib/weir"):
        tree.add(name, b"", 0o755, tarfile.DIRTYPE)
    tree.add("etc/passwd", f"root:x:0:0:root:/:/none\nweir:x:{USER}:{USER}:Weir:/:/none\n".encode())
    tree.add("etc/group", f"root:x:0:\nweir:x:{USER}:\n".encode())
    tree.add("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n")
    tree.add("etc/os-release", read("/etc/os-release"))
    packages = set()
    for path in sorted(paths):
        packages.add(package(path))
        # under /usr, as the links at the top have it; by the name that the loader asks for
        tree.add("usr/" + path.removeprefix("/usr").lstrip("/"), read(path), 0o755)
    for name in sorted(packages):
        tree.add(COPYRIGHT.format(name), read("/" + COPYRIGHT.format(name)))
        tree.add(STATUS.format(name), run("dpkg-query", "-s", name).encode())
    return tree, sorted(packages)


def version():
    with open(os.path.join(ROOT, "Cargo.toml")) as f:
        return re.search(r'^version = "(.*)"', f.read(), re.M)[1]


# --- the binaries -----------------------------------------------------------------------

def stripped(binary):
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "binary")
        run("strip", "-o", out, binary)
        return read(out)


def debian(packages):
    """Of each package what the SBOM has: name, version, architecture, release."""
    release = dict(line.split("=", 1) for line in read("/etc/os-release").decode().split("\n") if "=" in line)
    name = "-".join(release.get(key, "").strip('"') for key in ("ID", "VERSION_ID"))
    for package in packages:
        version, architecture = run("dpkg-query", "-W", "-f", "${Version} ${Architecture}", package).split()
        yield package, version, architecture, name


def programs(binaries, packages, time, for_tests):
    tree = Tree()
    names = [os.path.basename(binary) for binary in binaries]
    crates = (sbom.crates_locked if for_tests else sbom.crates_built)(names)
    tree.add("usr/share/doc/weir/sbom.cdx.json",
             sbom.cyclonedx("weir", version(), time, crates, debian(packages)).encode())
    if not for_tests:
        tree.add("usr/share/doc/weir/third-party.txt", sbom.licences(crates).encode())
    for binary in binaries:
        tree.add(f"usr/bin/{os.path.basename(binary)}", stripped(binary), 0o755)
    for name in ("LICENSE", "NOTICE"):
        tree.add(f"usr/share/doc/weir/{name}", read(os.path.join(ROOT, name)))
    return tree


# --- the archive ------------------------------------------------------------------------

def descriptor(kind, blob, **more):
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": "sha256:" + hashlib.sha256(blob).hexdigest(),
            "size": len(blob)} | more


def encode(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def archive(name, time, layers, labels, level):
    """The bytes of an OCI archive, and the image's digest. Layers are (tar, what made it), compressed by a level."""
    created = datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    zipped = [gzip.compress(raw, level, mtime=0) for raw, _ in layers]
    config = encode({
        "created": created, "architecture": ARCHITECTURES[platform.machine()], "os": "linux",
        "config": {"User": f"{USER}:{USER}", "Env": ["PATH=/usr/bin"], "WorkingDir": "/", "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(raw).hexdigest() for raw, _ in layers]},
        "history": [{"created": created, "created_by": made} for _, made in layers]})
    manifest = encode({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", config),
        "layers": [descriptor("layer.v1.tar+gzip", blob) for blob in zipped], "annotations": labels})
    top = descriptor("manifest.v1+json", manifest, platform={"architecture": ARCHITECTURES[platform.machine()], "os": "linux"},
                     annotations={"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name})
    index = encode({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [top]})
    tree = Tree()
    tree.add("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    tree.add("index.json", index)
    for blob in (config, manifest, *zipped):
        tree.add("blobs/sha256/" + hashlib.sha256(blob).hexdigest(), blob)
    return tree.tar(time), top["digest"]


def labels(programs):
    return {
        "org.opencontainers.image.title": "weir",
        "org.opencontainers.image.description": "NetworkPolicy for Kubernetes: " + " and ".join(programs),
        "org.opencontainers.image.version": version(),
        "org.opencontainers.image.revision": commit("rev-parse", "HEAD"),
        "org.opencontainers.image.source": "https://github.com/weir-dev/weir",
        # the agent is linked with libnftnl: NOTICE says what follows
        "org.opencontainers.image.licenses": "Apache-2.0 AND GPL-3.0-or-later AND LGPL-2.1-or-later",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--name", default=f"localhost/weir:{version()}", help="the image's name and tag (%(default)s)")
    parser.add_argument("--for-tests", action="store_true", help="take an agent with the feature ipset, too")
    parser.add_argument("--root", metavar="DIR", help="write the files into this folder, which must not be there, instead")
    parser.add_argument("paths", metavar="OUT.tar BINARY", nargs="+", help="without OUT.tar if there is --root")
    args = parser.parse_args()
    args.out, args.binaries = (None, args.paths) if args.root else (args.paths[0], args.paths[1:])
    if not args.binaries:
        die("which binaries? target/release/weir-agent target/release/weir-controller")
    if args.root and os.path.exists(args.root):
        die(f"--root: {args.root} is there already")
    if platform.machine() not in ARCHITECTURES:
        die(f"no images for {platform.machine()}, only for {', '.join(ARCHITECTURES)}")
    for binary in args.binaries:
        if not os.access(binary, os.X_OK):
            die(f"{binary} is not an executable: cargo build --release -p {os.path.basename(binary)}")
    paths = libraries(args.binaries)
    if any("libipset" in path for path in paths) and not args.for_tests:
        die("linked with libipset (feature ipset): such an image must not be handed on, see NOTICE; build without "
            "the feature, or say --for-tests")
    time = int(os.environ.get("SOURCE_DATE_EPOCH") or commit("log", "-1", "--format=%ct") or 0)
    tree, packages = base(paths)
    binaries = programs(args.binaries, packages, time, args.for_tests)
    if args.root:
        tree.write(args.root)
        binaries.write(args.root)
        return
    content, digest = archive(args.name, time, [
        (tree.tar(0), "image.py: " + " ".join(packages)),
        (binaries.tar(time), "image.py: " + " ".join(sorted(map(os.path.basename, args.binaries)))),
    ], labels(map(os.path.basename, args.binaries)), 1 if args.for_tests else 9)
    with open(args.out + ".new", "wb") as f:
        f.write(content)
    os.replace(args.out + ".new", args.out)
    print(args.name, digest)


if __name__ == "__main__":
    main()
