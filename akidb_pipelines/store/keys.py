"""The keys that sign a registry: files by default, Vault's transit engine where a team has one.

A key ring holds one current key a role and any number of earlier ones. Which of them counts, the root metadata says; a ring only signs.
Back `root` up off this machine: whoever has it decides whom clients trust, and without it no lost key can ever be replaced.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from akidb_pipelines.errors import InputError
from akidb_pipelines.files import write_whole
from akidb_pipelines.store.objects import unreachable
from akidb_pipelines.vault import ask_vault, open_vault

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
    """Ed25519 keys `<prefix>-<role>` in Vault's transit engine; a new key is a new version. Signs in as `akidb_pipelines.vault` does."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.where = f"Vault, transit keys {prefix}-*"
        self._wanted = f"transit keys {prefix}-*"

    def signers(self) -> Mapping[str, Signer]:
        """See KeyRing."""
        client = open_vault(self._wanted)
        from securesystemslib.signer import VaultSigner

        found: dict[str, Signer] = {}
        for role in ROLES:
            for version, key in self._versions(client, role).items():
                signer = VaultSigner(f"{self.prefix}-{role}", key, version)
                signer._client = client  # its own knows VAULT_TOKEN only
                found[key.keyid] = signer
        return found

    def generate(self, role: str) -> Key:
        """See KeyRing."""
        name, client = f"{self.prefix}-{role}", open_vault(self._wanted)
        transit = client.secrets.transit
        if self._versions(client, role):
            ask_vault(self._wanted, lambda: transit.rotate_key(name))
        else:
            ask_vault(self._wanted, lambda: transit.create_key(name, key_type="ed25519"))
        versions = self._versions(client, role)
        return versions[max(versions)]

    def _versions(self, client: Any, role: str) -> dict[int, SSlibKey]:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from hvac.exceptions import InvalidPath
        from securesystemslib.signer import SSlibKey

        name = f"{self.prefix}-{role}"
        try:
            told = ask_vault(self._wanted, lambda: client.secrets.transit.read_key(name))["data"]["keys"]
        except InvalidPath:
            return {}
        return {
            int(version): SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(base64.b64decode(key["public_key"])))
            for version, key in told.items()
        }


def open_keys(where: str, default: Path) -> KeyRing:
    """The key ring that the setting AKIDB_REGISTRY_KEYS names."""
    if where.startswith(_VAULT):
        return VaultKeys(where.removeprefix(_VAULT))
    return FileKeys(Path(where).expanduser() if where else default)
