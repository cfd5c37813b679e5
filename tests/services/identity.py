"""A stand-in for Okta and oauth2-proxy: an issuer with published keys and tokens of any kind, and a proxy that puts one on every request.

The proxy knows as much HTTP as it takes: it reads a request's head, adds the header, and passes everything else through, WebSockets too.
"""

from __future__ import annotations

import base64
import json
import secrets
import socket
import threading
import time
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

from tests.services.http_stub import Answer, HttpStub, RefusedError, Request

AUDIENCE = "akidb-pipelines"


class Issuer(HttpStub):
    """`with Issuer() as issuer: issuer.token("qa")`."""

    def __init__(self) -> None:
        super().__init__()
        self._key = generate_private_key(65537, 2048)
        self._key_id = secrets.token_hex(4)

    def rotate(self) -> None:
        """Another key from now on."""
        self._key, self._key_id = generate_private_key(65537, 2048), secrets.token_hex(4)

    def environment(self) -> dict[str, str]:
        """What the front needs in order to believe this issuer."""
        return {"AKIDB_AUTH_ISSUER": self.endpoint, "AKIDB_AUTH_JWKS_URL": f"{self.endpoint}/keys"}

    def token(self, *groups: str, key: RSAPrivateKey | None = None, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token of somebody in these groups; claims that are None are left out."""
        name = groups[0] if groups else "nobody"
        said = {
            "iss": self.endpoint,
            "aud": AUDIENCE,
            "sub": f"00u-{name}",
            "email": f"{name}@akidb.example",
            "groups": list(groups),
            "iat": int(time.time()),
            "exp": int(time.time()) + 600,
            **claims,
        }
        kept = {k: v for k, v in said.items() if v is not None}
        return jwt.encode(kept, key or self._key, algorithm="RS256", headers={"kid": self._key_id, **(header or {})})

    def unsigned(self, *groups: str) -> str:
        """The same with alg none."""
        _, claims, _ = self.token(*groups).split(".")
        head = base64.urlsafe_b64encode(json.dumps({"alg": "none", "typ": "JWT", "kid": self._key_id}).encode()).rstrip(b"=")
        return f"{head.decode()}.{claims}."

    def public_pem(self) -> bytes:
        """What an attacker would sign with by HS256."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    # what the server asks

    def authenticate(self, request: Request) -> None:
        """Keys are public."""

    def serve(self, request: Request) -> Answer:
        if request.path != "/keys":
            raise RefusedError(404, "not found")
        key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key()))
        return Answer(200, {}, json.dumps({"keys": [{**key, "kid": self._key_id, "alg": "RS256", "use": "sig"}]}).encode())

    def error(self, refused: RefusedError) -> Answer:
        return Answer(refused.status, {}, b"{}")

    def sign_off(self, number: int) -> dict[str, str]:
        return {"content-type": "application/json"}


class SignInProxy:
    """Everything that comes in here goes on with a token: `with SignInProxy(port_of_the_front, token) as proxy: proxy.url`."""

    def __init__(self, port: int, token: str) -> None:
        self._behind, self._token = ("127.0.0.1", port), token
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._behind) as server:
            data = b""
            while b"\r\n\r\n" not in data:
                if not (more := client.recv(65536)):
                    return
                data += more
            head, _, rest = data.partition(b"\r\n\r\n")
            lines = head.split(b"\r\n")
            upgrade = any(line.lower().startswith(b"upgrade:") for line in lines)
            kept = [line for line in lines if upgrade or not line.lower().startswith(b"connection:")]
            # One request a connection, so that no second one goes by without a token.
            kept += [b"Authorization: Bearer " + self._token.encode()] + ([] if upgrade else [b"Connection: close"])
            server.sendall(b"\r\n".join(kept) + b"\r\n\r\n" + rest)
            threading.Thread(target=_pump, args=(client, server), daemon=True).start()
            _pump(server, client)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return
