"""Settings from the environment (`AKIDB_*`) and `akidb-pipelines.toml`; the environment wins.

Read once by whoever composes a program (`cli`, `resources`), never at import and never deep inside the library.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from akidb_pipelines.errors import InputError


def _checkout() -> Path | None:
    """The checkout that this package runs from, or None when it was installed as a wheel."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else None


def default_home() -> Path:
    """`<checkout>/var`; for an installed wheel, the user's state folder (XDG base directory specification)."""
    if checkout := _checkout():
        return checkout / "var"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "akidb-pipelines"


class Settings(BaseSettings):
    """What an installation may set. Names in the environment carry the prefix `AKIDB_`."""

    # An empty variable is one that is not set: compose files hand them all on.
    model_config = SettingsConfigDict(
        env_prefix="AKIDB_", env_ignore_empty=True, frozen=True, extra="ignore", toml_file="akidb-pipelines.toml"
    )

    home: Path = Field(default_factory=default_home, description="Where state lives: store, catalog, builds.")
    store: str = Field(default="", description="Base of the artifact store; default file://$AKIDB_HOME/store.")
    store_timeout_s: float = Field(
        default=30, gt=0, description="Longest silence of a store's server that is put up with, in seconds."
    )
    registry_root: Path | None = Field(default=None, description="Root metadata of the registry that pulls trust.")
    registry_keys: str = Field(
        default="", description="Signing keys: a folder, or vault:PREFIX; default in the registry's folder under AKIDB_HOME."
    )
    oci_auth: Literal["config_file", "instance_principal"] = Field(
        default="config_file", description="How to sign in to OCI: ~/.oci/config, or as the OCI host that this runs on."
    )
    oci_profile: str = Field(default="DEFAULT", description="Profile of the OCI config file.")
    oci_endpoint: str = Field(default="", description="Address of OCI Object Storage; default: the region's.")
    oci_compartment: str = Field(default="", description="OCID of the compartment that `registry init` makes buckets in.")
    catalog: str = Field(default="", description="SQLAlchemy URL of the catalog; default SQLite under AKIDB_HOME.")
    cedar_sandbox: Path | None = Field(default=None, description="Folder with another sandbox schema and policies.")
    migrations: Path | None = Field(default=None, description="Migrations folder of an AkiDB checkout.")
    inventory: Path | None = Field(default=None, description="Ansible inventory of Jetsons and CI runners; default: the lab's.")
    seed: int = Field(default=2025, ge=0, lt=2**63, description="Seed of the fixtures.")
    profiles: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("ci", "standard"), description="Fixture profiles of the weekly run, with commas between."
    )
    auto_backfill: bool = Field(default=False, description="Let the drift sensor start backfills by itself.")
    weekly_fixtures_cron: str = Field(default="0 2 * * 1", description="When the weekly fixtures are built (UTC).")
    runner_images_cron: str = Field(default="0 3 * * 0", description="When the runner images are built (UTC).")
    runner_capacity_cron: str = Field(default="*/15 * * * *", description="When the CI runners are looked at (UTC).")
    health_cron: str = Field(default="*/30 * * * *", description="When observability and staging are looked at (UTC).")
    prometheus_url: str = Field(
        default="", description="Prometheus whose retention and newest data are looked at; empty: it is not."
    )
    loki_url: str = Field(default="", description="Loki whose retention and newest data are looked at; empty: it is not.")
    loki_selector: str = Field(default='{job=~".+"}', description="Log streams that must have something new.")
    jetson_images_cron: str = Field(default="0 4 1 * *", description="When the Jetsons are captured (UTC).")
    daily_backups_cron: str = Field(default="0 1 * * *", description="When backups are taken (UTC).")
    dr_drill_cron: str = Field(
        default="0 9 15 2,5,8,11 *", description="When a drill is run on the lab, and asked for on OCI (UTC)."
    )
    cost_source: str = Field(
        default="",
        description="Where billing files come from: a folder, s3://bucket/prefix or oci://bling/TENANCY/FOCUS Reports; empty: the lab's.",
    )
    cost_plan: Path | None = Field(default=None, description="Plan book; default: the shipped one of week 0.")
    cost_price_book: Path | None = Field(default=None, description="Price book of what no cloud bills; default: the shipped one.")
    cost_allocation: Path | None = Field(default=None, description="Rules that say whose a cost is; default: the shipped ones.")
    cost_close_days: int = Field(default=7, ge=0, description="A month is closed after so many days of the next.")
    oci_usage_endpoint: str = Field(default="", description="Address of OCI's Usage API; default: the region's.")
    oci_limits_endpoint: str = Field(default="", description="Address of OCI's Limits API; default: the region's.")
    cost_intake_cron: str = Field(default="0 6 * * *", description="When billing files are taken in (UTC).")
    cost_review_cron: str = Field(default="0 8 * * 1", description="When the review is written, every other time (UTC).")
    registry_gc_cron: str = Field(default="0 5 * * 3", description="When the registry's garbage is collected (UTC).")
    runbook_base: str = Field(
        default="https://github.com/aifocal/akidb_pipelines/blob/main/docs",
        description="Where the docs folder is served; runbook links in the UI begin with it.",
    )
    ui_url: str = Field(
        default="", description="Address that browsers see of the UI with login; empty takes each request's own Host header."
    )
    auth_issuer: str = Field(default="", description="Who issues the tokens of people who sign in (claim iss).")
    auth_audience: str = Field(default="akidb-pipelines", description="Whom their tokens must be meant for (claim aud).")
    auth_jwks_url: str = Field(default="", description="Where the issuer publishes its keys.")
    auth_groups: dict[str, Literal["platform-engineering", "application-engineering", "security", "qa"]] = Field(
        default={t: t for t in ("platform-engineering", "application-engineering", "security", "qa")},
        description="Team by the name of a group in the claim groups, as a JSON object; default: the teams' own names.",
    )
    access_log: Path | None = Field(default=None, description="Folder of the log of decisions; default access under AKIDB_HOME.")
    pagerduty_routing_key: SecretStr = Field(
        default=SecretStr(""), description="Integration key of PagerDuty's Events API v2 that alerts go to."
    )
    pagerduty_url: str = Field(default="https://events.pagerduty.com", description="Address of PagerDuty's Events API.")
    slack_webhook: SecretStr = Field(default=SecretStr(""), description="Incoming webhook of Slack #akidb-infra.")
    security_webhook: SecretStr = Field(default=SecretStr(""), description="Webhook of team Security for the alerts it hears of.")
    github_url: str = Field(default="", description="GitHub API; default for CI capacity: https://api.github.com.")
    github_repository: str = Field(default="", description="owner/name whose CI capacity is watched; empty: it is not.")
    github_token: SecretStr = Field(default=SecretStr(""), description="Token that may read its Actions and runners.")
    runner_jobs_baseline: int = Field(default=6, gt=0, description="CI jobs at once that the runners are planned for.")
    runner_jobs_burst: int = Field(default=12, gt=0, description="CI jobs at once at which capacity is exhausted.")
    grafana_url: str = Field(default="", description="Grafana that `doctor` tries to reach, and dashboards are exported from.")
    grafana_token: SecretStr = Field(default=SecretStr(""), description="Token of a service account that may view dashboards.")
    dashboards_repository: Path | None = Field(
        default=None, description="Git repository that dashboards are committed to; default backups/dashboards under AKIDB_HOME."
    )
    drill_allow_list: Path | None = Field(
        default=None, description="File that says which nodes of staging a drill may touch, and where."
    )
    lab_docker_host: str = Field(
        default="", description="Docker engine for the Swarm lab; default: DOCKER_HOST, else as root its own, else this machine's."
    )
    lab_heartbeat_s: float = Field(default=1, gt=0, description="Heartbeat of the Swarm lab's nodes, in seconds.")
    terraform_state: str = Field(
        default="",
        description="Terraform's state: a path, s3://bucket/key or oci://namespace/bucket/key; empty: it is not backed up.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the TOML file beside the checkout or in the working directory."""
        checkout = _checkout()
        toml = Path("akidb-pipelines.toml")
        if not toml.is_file() and checkout:
            toml = checkout / "akidb-pipelines.toml"
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml)

    @field_validator("profiles", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(p.strip() for p in value.split(",") if p.strip()) if isinstance(value, str) else value

    @classmethod
    def load(cls) -> Settings:
        """Read and validate.

        Raises:
            InputError: a setting is unusable; the message names it.
        """
        try:
            settings = cls()
        except ValidationError as error:
            told = "; ".join(f"AKIDB_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors() if e["loc"])
            raise InputError(f"settings: {told}", hint="correct the environment or akidb-pipelines.toml") from error
        except (SettingsError, tomllib.TOMLDecodeError, OSError) as error:
            raise InputError(f"settings: {error}", hint="correct the environment or akidb-pipelines.toml") from error
        return settings.model_copy(update={"home": settings.home.expanduser().absolute()})

    @property
    def store_url(self) -> str:
        """Base URL of the artifact store."""
        return self.store or f"file://{self.home / 'store'}"

    @property
    def catalog_url(self) -> str:
        """SQLAlchemy URL of the catalog."""
        return self.catalog or f"sqlite:///{self.home / 'catalog.db'}"

    @property
    def inventory_path(self) -> Path:
        """The inventory of Jetsons and CI runners."""
        if self.inventory:
            return self.inventory
        checkout = _checkout()
        folder = checkout / "deploy" / "inventory" if checkout else Path(__file__).parent
        return folder / "lab.yaml"

    @property
    def deploy(self) -> Path:
        """Folder of Packer templates and Ansible roles."""
        checkout = _checkout()
        return checkout / "deploy" if checkout else Path(__file__).parent / "deploy"

    @property
    def builds(self) -> Path:
        """Folder of finished, not yet released builds."""
        return self.home / "builds"

    @property
    def dashboards_path(self) -> Path:
        """The git repository that dashboards are committed to."""
        return self.dashboards_repository or self.home / "backups" / "dashboards"

    @property
    def cache(self) -> Path:
        """Folder of what was pulled before; may be removed at any time."""
        return self.home / "cache"

    def runbook(self, page: str) -> str:
        """Address of a page below docs/, such as `runbooks/fixture-drift.md`."""
        return f"{self.runbook_base.rstrip('/')}/{page}"
