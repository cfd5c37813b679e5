"""Who asks: a JSON Web Token in the header `Authorization: Bearer`, checked against the issuer's published keys (RFC 7519, RFC 7517).

Only RS256, only the configured issuer and audience, never without an end. Teams come from the claim `groups`. Login itself is not here:
oauth2-proxy, or whatever stands in front, brings the token.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx
import jwt

from akidb_pipelines.errors import InputError, PipelineError
from akidb_pipelines.settings import Settings

_LEEWAY_S = 10
"""What the clocks of two machines may differ by."""
_KEYS_LAST_S = 600
_ASK_AGAIN_S = 30
"""Tokens with unknown keys make the front ask for new ones at most so often, whoever sends them."""
_TIMEOUT_S = 5
_NEW_KEY_S = 1
_LONGEST = 1 << 20


class RefusedTokenError(PipelineError):
    """No token, or one that proves nothing."""


@dataclass(frozen=True)
class Principal:
    """Somebody who signed in."""

    id: str
    """The claim `sub`."""
    email: str
    teams: tuple[str, ...]
    """Of the access matrix, in order."""
    expires: float
    """When the token ends, in seconds of the epoch."""

    @property
    def name(self) -> str:
        """As runs and the journal name them."""
        return self.email or self.id


class PublishedKeys:
    """The issuer's keys by id. They are kept while the issuer does not answer: its outage locks nobody out who has a token.

    Args:
        url: where the issuer publishes its key set.
        clock: seconds that only grow.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url, self._clock = url, clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._asked: float | None = None
        self._asking = threading.Lock()

    def key(self, key_id: str) -> jwt.PyJWK:
        """The key of that id.

        Raises:
            RefusedTokenError: the issuer has published none.
        """
        # One asks; the others do not wait for an issuer that hangs, unless no key is known at all. A new key is worth a second.
        if self._is_due(key_id) and self._asking.acquire(timeout=_NEW_KEY_S if self._keys else -1):
            try:
                if self._is_due(key_id):
                    self._ask()
            finally:
                self._asking.release()
        if (key := self._keys.get(key_id)) is None:
            raise RefusedTokenError(f"the issuer has published no key {key_id[:60]!r}")
        return key

    def _is_due(self, key_id: str) -> bool:
        age = None if self._asked is None else self._clock() - self._asked
        return age is None or age > _KEYS_LAST_S or (key_id not in self._keys and age > _ASK_AGAIN_S)

    def _ask(self) -> None:
        try:
            keys = jwt.PyJWKSet.from_dict(json.loads(_read(self._url))).keys
            self._keys = {key.key_id: key for key in keys if key.key_id} or self._keys
        except (httpx.HTTPError, jwt.PyJWTError, ValueError, TypeError, AttributeError) as error:
            if not self._keys:
                raise RefusedTokenError(f"the issuer's keys at {self._url} cannot be had: {error}") from error
        finally:
            self._asked = self._clock()


def _read(url: str) -> bytes:
    """All of it, however slowly it drips, within twice the time limit."""
    until, body = time.monotonic() + 2 * _TIMEOUT_S, bytearray()
    with httpx.stream("GET", url, timeout=_TIMEOUT_S) as answer:
        answer.raise_for_status()
        for piece in answer.iter_bytes():
            body += piece
            if time.monotonic() > until or len(body) > _LONGEST:
                raise ValueError("it answers too slowly, or too much")
    return bytes(body)


class Doorkeeper:
    """Reads tokens.

    Args:
        issuer: the only one that is believed.
        audience: what a token must be meant for.
        keys: the issuer's.
        teams: by the name of a group in the claim `groups`; other groups mean nothing.
    """

    def __init__(self, issuer: str, audience: str, keys: PublishedKeys, teams: Mapping[str, str]) -> None:
        self._issuer, self._audience, self._keys, self._teams = issuer, audience, keys, teams

    def admit(self, authorization: list[str]) -> Principal:
        """Who sent these `Authorization` headers.

        Raises:
            RefusedTokenError: none, more than one, or what it says is not proved.
        """
        if len(authorization) != 1:
            raise RefusedTokenError("no token" if not authorization else "more than one Authorization header")
        scheme, _, token = authorization[0].partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise RefusedTokenError("the Authorization header holds no bearer token")
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") != "RS256":
                raise RefusedTokenError(f"signed by {str(header.get('alg'))[:20]!r}; only RS256 is accepted")
            claims = jwt.decode(
                token,
                self._keys.key(str(header.get("kid", ""))),
                algorithms=["RS256"],
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise RefusedTokenError(f"the token is refused: {error}") from error
        if not claims["sub"]:
            raise RefusedTokenError("the claim sub is empty")
        groups = claims.get("groups", [])
        if not isinstance(groups, list) or not all(isinstance(g, str) for g in groups):
            raise RefusedTokenError("the claim groups is no list of names")
        # Mostly it is not said; where the issuer says that it has not verified it, anybody may have written another's.
        email = claims.get("email", "") if claims.get("email_verified", True) is True else ""
        teams = tuple(sorted({self._teams[g] for g in groups if g in self._teams}))
        return Principal(str(claims["sub"]), email if isinstance(email, str) else "", teams, float(claims["exp"]))


def open_doorkeeper(settings: Settings) -> Doorkeeper:
    """The doorkeeper as configured.

    Raises:
        InputError: issuer or keys are not configured.
    """
    lacking = [f"AKIDB_{n.upper()}" for n in ("auth_issuer", "auth_jwks_url") if not getattr(settings, n)]
    if lacking:
        raise InputError(f"who may sign in is not configured: {', '.join(lacking)}", hint="docs/deployment.md says what to set")
    return Doorkeeper(
        settings.auth_issuer, settings.auth_audience, PublishedKeys(settings.auth_jwks_url), dict(settings.auth_groups)
    )
