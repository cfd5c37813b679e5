"""A stub of Vault: the transit engine with ed25519 keys, versions and real signatures; KV version 2; AppRole. Tokens are checked.

It knows one token, one role, and the mounts `transit` and `kv`; neither policies nor leases nor other types of key. Faults as in
`http_stub`.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.services.http_stub import Answer, HttpStub, RefusedError, Request


class VaultStub(HttpStub):
    """`with VaultStub() as vault: vault.create("root")`; clients find it through `vault.environment()`."""

    def __init__(self) -> None:
        super().__init__()
        self.token = f"hvs.{secrets.token_hex(12)}"
        self.role_id, self.secret_id = secrets.token_hex(8), secrets.token_hex(12)
        self.stored: dict[str, dict[str, Any]] = {}  # by path below kv
        self.keys: dict[str, list[Ed25519PrivateKey]] = {}  # version 1 comes first

    # what tests use

    def environment(self) -> dict[str, str]:
        """What a process needs in order to use this Vault."""
        return {"VAULT_ADDR": self.endpoint, "VAULT_TOKEN": self.token}

    def create(self, name: str) -> None:
        """As Vault does: a key that exists stays as it is."""
        self.keys.setdefault(name, [Ed25519PrivateKey.generate()])

    def rotate(self, name: str) -> None:
        """A new version, which is the one that signs from now on unless another is asked for."""
        self.keys[name].append(Ed25519PrivateKey.generate())

    # what the server asks

    def authenticate(self, request: Request) -> None:
        if request.path == "/v1/auth/approle/login":
            return
        if not secrets.compare_digest(request.headers.get("x-vault-token", ""), self.token):
            raise RefusedError(403, "permission denied")

    def serve(self, request: Request) -> Answer:
        method = "POST" if request.method == "PUT" else request.method  # Vault makes no difference
        match [method, *unquote(request.path).strip("/").split("/")]:
            case ["POST", "v1", "auth", "approle", "login"]:
                if _sent(request) != {"role_id": self.role_id, "secret_id": self.secret_id}:
                    raise RefusedError(400, "invalid role or secret ID")
                return Answer(200, {}, json.dumps({"auth": {"client_token": self.token, "lease_duration": 3600}}).encode())
            case ["GET", "v1", "kv", "data", *path]:
                if (name := "/".join(path)) not in self.stored:
                    raise RefusedError(404, "")
                return _answer({"data": self.stored[name], "metadata": {"version": 1, "deletion_time": "", "destroyed": False}})
            case ["POST", "v1", "transit", "keys", name]:
                if (kind := _sent(request).get("type")) != "ed25519":
                    raise RefusedError(400, f"unknown key type {kind}")
                self.create(name)
                return _answer(self._described(name))
            case ["GET", "v1", "transit", "keys", name]:
                if name not in self.keys:
                    raise RefusedError(404, "")
                return _answer(self._described(name))
            case ["POST", "v1", "transit", "keys", name, "rotate"]:
                if name not in self.keys:
                    raise RefusedError(400, "key not found")
                self.rotate(name)
                return _answer(self._described(name))
            case ["POST", "v1", "transit", "sign", name]:
                return _answer(self._signed(name, _sent(request)))
        raise RefusedError(404, f"no handler for route {request.path!r}")

    def error(self, refused: RefusedError) -> Answer:
        return Answer(refused.status, {}, json.dumps({"errors": [refused.code] if refused.code else []}).encode())

    def sign_off(self, number: int) -> dict[str, str]:
        return {"content-type": "application/json", "cache-control": "no-store"}

    def _described(self, name: str) -> dict[str, Any]:
        versions = {
            str(number): {
                "creation_time": datetime.now(UTC).isoformat(),
                "name": "ed25519",
                "public_key": base64.b64encode(key.public_key().public_bytes_raw()).decode(),
            }
            for number, key in enumerate(self.keys[name], 1)
        }
        return {"name": name, "type": "ed25519", "latest_version": len(versions), "supports_signing": True, "keys": versions}

    def _signed(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        if name not in self.keys:
            raise RefusedError(400, "signing key not found")
        version = int(asked.get("key_version") or len(self.keys[name]))
        if not 1 <= version <= len(self.keys[name]):
            raise RefusedError(400, "cannot sign: no such version of the key")
        try:
            payload = base64.b64decode(asked.get("input", ""), validate=True)
        except binascii.Error as error:
            raise RefusedError(400, f"unable to decode input as base64: {error}") from error
        signature = base64.b64encode(self.keys[name][version - 1].sign(payload)).decode()
        return {"signature": f"vault:v{version}:{signature}", "key_version": version}


def _sent(request: Request) -> dict[str, Any]:
    return json.loads(request.body or b"{}")


def _answer(data: dict[str, Any]) -> Answer:
    return Answer(200, {}, json.dumps({"data": data}).encode())
