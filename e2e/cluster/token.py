#!/usr/bin/env python3
"""token.py KEY [SECONDS]: the service account token on stdin once more, signed by KEY (PEM, P-256), with all its
times moved by so many seconds: what an API server with this key would have given then. Needs openssl."""
import base64
import json
import subprocess
import sys


def encode(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def numbers(der):
    """The two numbers of a signature in DER (a sequence of two integers), of 32 bytes each."""
    found, rest = b"", der[2:]
    for _ in range(2):
        size = rest[1]
        found += rest[2:2 + size].lstrip(b"\0").rjust(32, b"\0")
        rest = rest[2 + size:]
    return found


key, moved = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
head, claims, _ = sys.stdin.read().strip().split(".")
head, claims = json.loads(decode(head)), json.loads(decode(claims))
if head["alg"] != "ES256":
    sys.exit(f"token.py: the token is signed with {head['alg']}, and not with ES256")
for name in ("exp", "iat", "nbf"):
    claims[name] += moved
text = ".".join(encode(json.dumps(part, separators=(",", ":")).encode()) for part in (head, claims))
der = subprocess.run(["openssl", "dgst", "-sha256", "-sign", key], input=text.encode(), stdout=subprocess.PIPE,
                     check=True).stdout
print(f"{text}.{encode(numbers(der))}")
