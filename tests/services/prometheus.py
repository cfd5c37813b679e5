"""Prometheus and Alertmanager of Debian's packages, with the project's own configuration, hurried up."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.services.receivers import Receivers
from tests.services.server import ROOT, Server, free_port

CONFIGURATION = ROOT / "deploy" / "prometheus"


def prometheus(folder: Path, targets: dict[str, str], alertmanager: str = "", retention: str = "14d") -> Server:
    """Prometheus with the project's rules. Every wait is a second.

    Args:
        folder: for its data and copies of the configuration.
        targets: address by that in prometheus.yaml, such as `exporter:9464`.
        alertmanager: its address; none leaves alerts to be seen here only.
        retention: as its command line takes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    text = (CONFIGURATION / "prometheus.yaml").read_text()
    for there, here in {**targets, "alertmanager:9093": alertmanager or "127.0.0.1:1"}.items():
        text = text.replace(there, here)
    (folder / "prometheus.yaml").write_text(re.sub(r"interval: 30s", "interval: 1s", text))
    rules = (CONFIGURATION / "rules.yaml").read_text()
    (folder / "rules.yaml").write_text(re.sub(r"for: \d+m", "for: 0s", rules).replace("interval: 30s", "interval: 1s"))
    return Server(
        [
            "prometheus",
            f"--config.file={folder}/prometheus.yaml",
            f"--storage.tsdb.path={folder}/data",
            f"--storage.tsdb.retention.time={retention}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        port,
        "/-/ready",
        folder / "prometheus.log",
    )


def alertmanager(folder: Path, receivers: Receivers) -> Server:
    """Alertmanager with the project's routes, and stand-ins to send to."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    secret = {
        "pagerduty_routing_key": receivers.routing_key,
        "slack_webhook": receivers.endpoint + receivers.slack_path,
        "security_webhook_token": receivers.security_token,
    }
    for name, value in secret.items():
        (folder / name).write_text(value)
    text = (CONFIGURATION / "alertmanager.yaml").read_text()
    text = text.replace("/run/secrets/", f"{folder}/")
    text = text.replace("https://events.pagerduty.com", receivers.endpoint)
    text = text.replace("https://hooks.security.akidb.example/alerts", f"{receivers.endpoint}/security")
    text = text.replace("group_wait: 10s", "group_wait: 1s").replace("group_interval: 1m", "group_interval: 1s")
    text = text.replace("resolve_timeout: 5m", "resolve_timeout: 3s")
    (folder / "alertmanager.yaml").write_text(text)
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager") or "prometheus-alertmanager"
    return Server(
        [
            program,
            f"--config.file={folder}/alertmanager.yaml",
            f"--storage.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
        ],
        port,
        "/-/ready",
        folder / "alertmanager.log",
    )
