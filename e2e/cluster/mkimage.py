#!/usr/bin/env python3
"""mkimage.py NAME OUT.tar BINARY [CMD...]: an OCI image archive that holds one
static binary (as /<basename>, the entrypoint) and the least files around it."""
import gzip, hashlib, io, json, os, platform, sys, tarfile

name, out, binary, cmd = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]


def info(path, mode, kind=tarfile.REGTYPE, size=0):
    t = tarfile.TarInfo(path)
    t.mode, t.type, t.size, t.mtime = mode, kind, size, 0
    return t


layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode="w") as t:
    for d, mode in (("etc", 0o755), ("tmp", 0o1777), ("var", 0o755), ("var/run", 0o755)):
        t.addfile(info(d, mode, tarfile.DIRTYPE))
    for path, text in (("etc/passwd", "root:x:0:0:root:/:/none\nnobody:x:65534:65534:nobody:/:/none\n"),
                       ("etc/group", "root:x:0:\nnobody:x:65534:\n")):
        t.addfile(info(path, 0o644, size=len(text)), io.BytesIO(text.encode()))
    base = os.path.basename(binary)
    with open(binary, "rb") as f:
        t.addfile(info(base, 0o755, size=os.path.getsize(binary)), f)
raw = layer.getvalue()
zipped = gzip.compress(raw, 1, mtime=0)


def sha(b):
    return "sha256:" + hashlib.sha256(b).hexdigest()


config = json.dumps({
    "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()], "os": "linux",
    "config": {"Entrypoint": ["/" + base], "Cmd": cmd, "Env": ["PATH=/"], "WorkingDir": "/"},
    "rootfs": {"type": "layers", "diff_ids": [sha(raw)]}}).encode()
manifest = json.dumps({
    "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha(config), "size": len(config)},
    "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": sha(zipped),
                "size": len(zipped)}]}).encode()
index = json.dumps({
    "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": sha(manifest), "size": len(manifest),
        "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}}]}).encode()

with tarfile.open(out + ".new", "w") as t:
    def add(path, b):
        t.addfile(info(path, 0o644, size=len(b)), io.BytesIO(b))
    add("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    add("index.json", index)
    for b in (config, manifest, zipped):
        add("blobs/sha256/" + sha(b)[7:], b)
os.replace(out + ".new", out)
print(name, sha(manifest))
