"""Signing in to HashiCorp Vault: VAULT_ADDR, and VAULT_ROLE_ID with VAULT_SECRET_ID (AppRole), or VAULT_TOKEN. Needs the extra `vault`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from akidb_pipelines.errors import InputError, OutsideError

_TIMEOUT_S = 10
HINT = "VAULT_ADDR, and VAULT_ROLE_ID with VAULT_SECRET_ID, or VAULT_TOKEN; and a policy that permits it (docs/deployment.md)"


def open_vault(wanted: str) -> Any:  # hvac has no types
    """A client that has signed in.

    Args:
        wanted: what for, as an error says it.

    Raises:
        InputError: hvac is not installed.
        OutsideError: Vault does not answer, or refuses.
    """
    try:
        import hvac
    except ModuleNotFoundError as error:
        hint = "the team's image has it; in a checkout run `make setup-dev`; of a wheel install the extra `vault`"
        raise InputError(f"{wanted}: that is in Vault, and hvac is not installed", hint=hint) from error
    client = hvac.Client(timeout=_TIMEOUT_S)
    role, secret = os.environ.get("VAULT_ROLE_ID"), os.environ.get("VAULT_SECRET_ID")
    if role and secret:
        ask_vault(wanted, lambda: client.auth.approle.login(role_id=role, secret_id=secret))
    return client


def ask_vault(wanted: str, ask: Callable[[], Any]) -> Any:
    """Its answer; hvac's InvalidPath, which means that there is no such thing, passes through."""
    from hvac.exceptions import InvalidPath, VaultError
    from requests.exceptions import RequestException

    try:
        return ask()
    except InvalidPath:
        raise
    except (VaultError, RequestException) as error:
        # Its text may hold the request, and that the secret id.
        raise OutsideError(f"Vault, {wanted}: {type(error).__name__}", hint=HINT) from None
