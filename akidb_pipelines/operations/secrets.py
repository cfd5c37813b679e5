"""Secrets from Vault (KV version 2, AppRole), put into the environment of code servers and runs by Dagster. Needs the extra `vault`.

    secrets:
      custom:
        module: akidb_pipelines.operations.secrets
        class: VaultSecretsLoader
        config: {mount: kv, path: akidb-pipelines}

Signs in with VAULT_ADDR, VAULT_ROLE_ID and VAULT_SECRET_ID, or with VAULT_TOKEN. Every entry of the secret becomes a variable of its name
(`AKIDB_GITHUB_TOKEN`), unless the environment sets it: what an operator sets by hand at night wins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Self

from dagster import Field, StringSource
from dagster._core.secrets.loader import SecretsLoader
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from akidb_pipelines.errors import InputError, OutsideError

_TIMEOUT_S = 10
_HINT = "VAULT_ADDR, and VAULT_ROLE_ID with VAULT_SECRET_ID (or VAULT_TOKEN); docs/deployment.md"
_ALLOWED = ("AKIDB_", "AWS_")
"""Entries of other names are left alone: PATH in Vault would be in every process."""


class VaultSecretsLoader(SecretsLoader[Any], ConfigurableClass):
    """See the module."""

    def __init__(self, mount: str, path: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._mount, self._path, self._inst_data = mount, path, inst_data
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """Dagster's."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Field]:
        """Where the secret is."""
        return {
            "mount": Field(StringSource, is_required=False, default_value="kv"),
            "path": Field(StringSource, is_required=False, default_value="akidb-pipelines"),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """Dagster's."""
        return cls(inst_data=inst_data, **config_value)

    def get_secrets_for_environment(self, location_name: str | None) -> Mapping[str, str]:
        """What the environment lacks.

        Raises:
            InputError: hvac is not installed, or the secret holds something else than text.
            OutsideError: Vault does not answer, or refuses.
        """
        found = self._read()
        if odd := sorted(name for name, value in found.items() if not isinstance(value, str)):
            raise InputError(f"Vault, {self._mount}/{self._path}: {', '.join(odd)} is no text", hint="store every value as text")
        return {name: value for name, value in found.items() if name.startswith(_ALLOWED) and not os.environ.get(name)}

    def _read(self) -> dict[str, Any]:
        try:
            import hvac
            from hvac.exceptions import VaultError
            from requests.exceptions import RequestException
        except ImportError as error:
            raise InputError("secrets come from Vault, and hvac is not installed", hint="install akidb-pipelines[vault]") from error
        where = f"Vault, {self._mount}/{self._path}"
        try:
            client = hvac.Client(timeout=_TIMEOUT_S)
            role, secret = os.environ.get("VAULT_ROLE_ID"), os.environ.get("VAULT_SECRET_ID")
            if role and secret:
                client.auth.approle.login(role_id=role, secret_id=secret)
            answer = client.secrets.kv.v2.read_secret_version(
                path=self._path, mount_point=self._mount, raise_on_deleted_version=True
            )
        except (VaultError, RequestException) as error:
            # Its text may hold the request, and that the secret id.
            raise OutsideError(f"{where} cannot be read: {type(error).__name__}", hint=_HINT) from None
        return dict(answer["data"]["data"])
