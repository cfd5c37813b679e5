"""The keys that sign a registry: files by default, Vault's transit engine where a team has one.

A key ring holds one current key a role and any number of earlier ones. Which of them counts, the root metadata says; a ring only signs.
Back `root` up off this machine: whoever has it decides whom clients trust, and without it no lost key can ever be replaced.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from akidb_pipelines.errors import InputError, OutsideError
from akidb_pipelines.files import write_whole
from akidb_pipelines.store.objects import unreachable

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer, SSlibKey

ROLES = ("root", "targets", "snapshot", "timestamp")
_VAULT = "vault:"


class KeyRing(Protocol):
    """Signers by key id. Both verbs raise OutsideError when the place of the keys cannot be reached."""

    where: str

    def signers(self) -> Mapping[str, Signer]:
        """Every key that can sign, by its id."""
        ...

    def generate(self, role: str) -> Key:
        """Make a new key for a role, kept beside the earlier ones; returns its public half."""
        ...


class FileKeys:
    """Ed25519 keys as PEM files `<role>-<start of key id>.pem`, readable by their owner only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where = str(folder)

    def signers(self) -> Mapping[str, Signer]:
        """See KeyRing.

        Raises:
            InputError: a file is no private key.
        """
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from securesystemslib.signer import CryptoSigner

        found = {}
        try:
            for path in sorted(self.folder.glob("*.pem")):
                try:
                    signer = CryptoSigner(load_pem_private_key(path.read_bytes(), None))
                except (ValueError, TypeError) as error:
                    hint = "restore it from its backup; docs/runbooks/registry-key-lost.md says how to do without it"
                    raise InputError(f"signing key {path}: {error}", hint=hint) from error
                found[signer.public_key.keyid] = signer
        except OSError as error:
            raise unreachable(str(self.folder), "reading signing keys", error) from error
        return found

    def generate(self, role: str) -> Key:
        """See KeyRing."""
        from securesystemslib.signer import CryptoSigner

        signer = CryptoSigner.generate_ed25519()
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            before = os.umask(0o077)
            try:
                write_whole(self.folder / f"{role}-{signer.public_key.keyid[:8]}.pem", signer.private_bytes, mode=0o600)
            finally:
                os.umask(before)
        except OSError as error:
            raise unreachable(str(self.folder), "writing a signing key", error) from error
        return signer.public_key


class VaultKeys:
    """Ed25519 keys `<prefix>-<role>` in Vault's transit engine; a new key is a new version. Address and token: VAULT_ADDR, VAULT_TOKEN."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.where = f"Vault, transit keys {prefix}-*"

    def signers(self) -> Mapping[str, Signer]:
        """See KeyRing."""
        self._transit()  # says so if hvac is not installed
        from securesystemslib.signer import VaultSigner

        return {
            key.keyid: VaultSigner(f"{self.prefix}-{role}", key, version)
            for role in ROLES
            for version, key in self._versions(role).items()
        }

    def generate(self, role: str) -> Key:
        """See KeyRing."""
        name = f"{self.prefix}-{role}"
        transit = self._transit()
        if self._versions(role):
            self._asking(lambda: transit.rotate_key(name))
        else:
            self._asking(lambda: transit.create_key(name, key_type="ed25519"))
        versions = self._versions(role)
        return versions[max(versions)]

    def _versions(self, role: str) -> dict[int, SSlibKey]:
        transit = self._transit()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from hvac.exceptions import InvalidPath
        from securesystemslib.signer import SSlibKey

        try:
            told = self._asking(lambda: transit.read_key(f"{self.prefix}-{role}"))["data"]["keys"]
        except InvalidPath:
            return {}
        return {
            int(version): SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(base64.b64decode(key["public_key"])))
            for version, key in told.items()
        }

    def _transit(self) -> Any:  # hvac has no types
        try:
            import hvac
        except ModuleNotFoundError as error:
            hint = "install the extra: pip install 'akidb-pipelines[vault]'"
            raise InputError("AKIDB_REGISTRY_KEYS names Vault, and hvac is not installed", hint=hint) from error
        return hvac.Client().secrets.transit

    def _asking(self, ask: Callable[[], Any]) -> Any:
        from hvac.exceptions import InvalidPath, VaultError
        from requests.exceptions import RequestException

        try:
            return ask()
        except InvalidPath:
            raise
        except (VaultError, RequestException) as error:
            hint = "check VAULT_ADDR, VAULT_TOKEN and a policy that may read, create, rotate and sign with these keys"
            raise OutsideError(f"{self.where}: {error}", hint=hint) from error


def open_keys(where: str, default: Path) -> KeyRing:
    """The key ring that the setting AKIDB_REGISTRY_KEYS names."""
    if where.startswith(_VAULT):
        return VaultKeys(where.removeprefix(_VAULT))
    return FileKeys(Path(where).expanduser() if where else default)
