"""Secrets from Vault (KV version 2, AppRole), put into the environment of code servers and runs by Dagster. Needs the extra `vault`.

    secrets:
      custom:
        module: akidb_pipelines.operations.secrets
        class: VaultSecretsLoader
        config: {mount: kv, path: akidb-pipelines}

Every entry of the secret becomes a variable of its name
(`AKIDB_GITHUB_TOKEN`), unless the environment sets it: what an operator sets by hand at night wins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from dagster import DagsterError, Field, StringSource
from dagster._check import CheckError
from dagster._core.secrets.loader import SecretsLoader
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from akidb_pipelines.errors import InputError, OutsideError
from akidb_pipelines.vault import HINT, ask_vault, open_vault

_ALLOWED = ("AKIDB_", "AWS_")
"""Entries of other names are left alone: PATH in Vault would be in every process."""
NOT_FOR_RUNS = ("AKIDB_AUTH_", "AKIDB_PAGERDUTY_", "AKIDB_SECURITY_", "AKIDB_SLACK_")
"""What only the front and the sender of alerts need."""
_IN_RUN = ("DAGSTER_RUN_JOB_NAME", "AKIDB_CELERY_WORKER")
"""Set by Dagster in a run's container, and by deploy/celery in workers."""


def take_secrets(configuration: Path) -> None:
    """Put what the loader of a dagster.yaml has into this process's environment, as code servers and runs have it.

    The instance itself is not opened: a database that is away keeps no secret from the command that repairs it.

    Raises:
        InputError: the file's `secrets` is unusable, or what the loader has is.
        OutsideError: Vault does not answer, or refuses.
    """
    try:
        told = yaml.safe_load(configuration.read_text(encoding="utf-8"))["secrets"]["custom"]
        data = ConfigurableClassData(told["module"], told["class"], yaml.safe_dump(told.get("config") or {}))
        loader = data.rehydrate(as_type=SecretsLoader)  # type: ignore[type-abstract]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, DagsterError, CheckError) as error:
        raise InputError(
            f"secrets of {configuration}: {error!r}", hint="docs/deployment.md, Secrets, says how it is written"
        ) from error
    os.environ.update(loader.get_secrets_for_environment(None))


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
        left_out = NOT_FOR_RUNS if any(name in os.environ for name in _IN_RUN) else ()
        wanted = {n: value for n, value in found.items() if n.startswith(_ALLOWED) and not n.startswith(left_out)}
        return {name: value for name, value in wanted.items() if not os.environ.get(name)}

    def _read(self) -> dict[str, Any]:
        wanted = f"{self._mount}/{self._path}"
        read = open_vault(wanted).secrets.kv.v2.read_secret_version
        from hvac.exceptions import InvalidPath

        try:
            answer = ask_vault(wanted, lambda: read(path=self._path, mount_point=self._mount, raise_on_deleted_version=True))
        except InvalidPath:
            raise OutsideError(f"Vault, {wanted}: there is no such secret", hint=HINT) from None
        return dict(answer["data"]["data"])
