"""What deploy/ ships can be read by those that it is for, and says what docs/deployment.md promises."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import pytest
import yaml

from akidb_pipelines.definitions import build_defs
from akidb_pipelines.settings import Settings
from tests.services.server import ROOT

DEPLOY = ROOT / "deploy"
ENVIRONMENT = {
    line.partition("=")[0]: line.partition("=")[2] or "x"
    for line in (DEPLOY / "example.env").read_text().splitlines()
    if line and not line.startswith("#")
}


@pytest.fixture(scope="module")
def compose(tmp_path_factory):
    """As compose itself understands it."""
    folder = tmp_path_factory.mktemp("deploy")
    for name in ("compose.yaml", "postgres-init.sql"):
        shutil.copy(DEPLOY / name, folder / name)
    shutil.copy(DEPLOY / "example-akidb.env", folder / "akidb.env")
    (folder / "secrets").mkdir()
    (folder / "secrets" / "oidc_client_secret").write_text("x")
    new = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    command = ["docker", "compose"] if new else ["docker-compose"]
    done = subprocess.run(
        [*command, "-f", "compose.yaml", "config"],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_long_jobs_leave_a_place_in_every_tier_and_watchers_go_first():
    for path in (ROOT / "dagster.yaml", DEPLOY / "dagster.yaml", DEPLOY / "dagster-celery.yaml"):
        runs = yaml.safe_load(path.read_text())["concurrency"]["runs"]
        assert {"key": "akidb/long", "limit": 1} in runs["tag_concurrency_limits"], path
        assert runs["max_concurrent_runs"] > 1
    jobs = {job.name: job.tags for job in build_defs(Settings()).get_repository_def().get_all_jobs()}
    assert {n for n, tags in jobs.items() if "akidb/long" in tags} == {"jetson_images", "runner_images"}
    assert {n for n, tags in jobs.items() if tags.get("dagster/priority") == "10"} == {"backups", "health", "runner_capacity"}


def test_only_the_proxy_is_reachable_from_outside(compose):
    assert {name for name, service in compose["services"].items() if service.get("ports")} == {"proxy"}
    (port,) = compose["services"]["proxy"]["ports"]
    assert "127.0.0.1" in json.dumps(port)


def test_every_role_has_limits_health_and_time_to_end(compose):
    for name, service in compose["services"].items():
        assert service.get("mem_limit"), name
        if name not in {"migrate", "proxy"}:
            assert service["healthcheck"]["test"], name
            assert service["restart"] == "unless-stopped"
            assert service["stop_grace_period"], name


def test_our_roles_are_not_root_and_write_only_into_the_volume(compose):
    ours = {n: s for n, s in compose["services"].items() if s["image"].startswith("akidb-pipelines")}
    assert {*ours} == {"migrate", "code", "webserver", "daemon", "exporter"}
    for service in ours.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "user" not in service  # the image's own: not root
    socket = {n for n, s in ours.items() if "docker.sock" in json.dumps(s["volumes"])}
    assert socket == {"webserver", "daemon"}


def test_the_webserver_is_the_one_with_login(compose):
    assert compose["services"]["webserver"]["command"][:3] == ["akidb-pipelines", "ui", "--auth"]


def test_nothing_starts_before_both_databases_are_migrated(compose):
    for name in ("code", "exporter"):
        assert compose["services"][name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_images_are_pinned_and_ours_is_not_root():
    text = (DEPLOY / "compose.yaml").read_text() + (DEPLOY / "Dockerfile").read_text()
    assert ":latest" not in text
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert "--require-hashes" in dockerfile
    assert re.findall(r"^USER (.+)$", dockerfile, re.MULTILINE) == ["${UID}:${UID}"]
    assert "ENTRYPOINT [" not in dockerfile


def test_example_settings_are_settings():
    names = re.findall(r"^AKIDB_([A-Z_]+)=", (DEPLOY / "example-akidb.env").read_text(), re.MULTILINE)
    assert {n.lower() for n in names} <= {*Settings.model_fields}


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_image_is_built_and_runs(runner_lab, tmp_path):
    """On a Debian made here, since no registry is reachable; the same file that users build."""
    root = tmp_path / "root"
    certificates = "/etc/ssl/certs/ca-certificates.crt"
    subprocess.run(
        ["debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm", root], check=True
    )
    shutil.copy(certificates, f"{root}{certificates}")
    docker = ["docker", "--host", runner_lab.url]
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
        change = f"ENV PIP_CERT={certificates} SSL_CERT_FILE={certificates}"
        subprocess.run([*docker, "import", "--change", change, "-", "akidb/deploy-base"], stdin=tar.stdout, check=True)
    build = [
        "build",
        "--network",
        "host",
        "--build-arg",
        "BASE=akidb/deploy-base",
        "-f",
        "deploy/Dockerfile",
        "-t",
        "akidb-pipelines:test",
        ".",
    ]
    subprocess.run([*docker, *build], cwd=ROOT, env={**os.environ, "DOCKER_BUILDKIT": "0"}, check=True)
    # Every program that a run in a container starts; /usr/sbin is where a user of no rights does not look, and our code does.
    programs = "for p in git ssh ssh-keygen sfdisk e2fsck; do PATH=$PATH:/usr/sbin command -v $p >/dev/null || { echo no $p; exit 9; }; done"
    script = f"id -u; {programs}; akidb-pipelines cedar check"
    told = subprocess.run(
        [*docker, "run", "--rm", "--network", "host", "akidb-pipelines:test", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.splitlines()[0] == "10001"
