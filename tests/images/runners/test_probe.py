"""What is asked of a runner: versions against ranges, packages, a CI job."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from akidb_pipelines.images.runners import foundry, probe


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("git version 2.39.5 (Apple Git-154)", "2.39.5"),
        ("v18.20.4", "18.20.4"),
        ("Python 3.11.2", "3.11.2"),
        ("3.40.1 2022-12-28 14:03:47 df5c253c0b3dd24916e4ec7cf77d3db5294cc9fd45ae7b9c5e82ad8197f3alt1", "3.40.1"),
        ("rustc 1.83.0 (90b35a623 2024-11-26)", "1.83.0"),
        ("Docker version 28.2.2, build e6534b4", "28.2.2"),
        ("cedar-policy-cli 4.3.1", "4.3.1"),
        ("version: 15.3.0.0.1.1708646388", "15.3.0.0.1.1708646388"),
        ("it prints no number", ""),
    ],
)
def test_a_version_is_found_in_what_a_tool_prints(printed, version):
    assert probe.version_in(printed) == version


@pytest.mark.parametrize(
    ("version", "wanted", "ok"),
    [
        ("2.39.5", ">=2.39", True),
        ("2.38.9", ">=2.39", False),
        ("2.100", ">=2.39", True),
        ("20.11.0", ">=20,<21", True),
        ("21.0", ">=20,<21", False),
        ("3", "==3.0", True),
        ("1.2", "", True),
        ("4.1", ">4.1", False),
        ("4.1", "<=4.1", True),
    ],
)
def test_a_version_lies_in_a_range_or_not(version, wanted, ok):
    assert probe.satisfies(version, wanted) is ok


def test_a_range_that_is_none_is_refused():
    with pytest.raises(ValueError, match="is no range of versions"):
        probe.parsed_range("^18")


def asked(request: dict, **more) -> dict:
    done = subprocess.run(
        [sys.executable, probe.__file__, json.dumps(request)], capture_output=True, text=True, check=True, timeout=60, **more
    )
    return json.loads(done.stdout)


def test_a_tool_that_is_missing_or_too_old_is_told_with_what_was_wanted_and_found():
    found = asked(
        {
            "tools": [
                {"name": "git", "command": "git --version", "wanted": ">=99"},
                {"name": "nix", "command": "no-such-tool --version", "wanted": ">=2"},
                {"name": "sh", "command": "echo 1.5", "wanted": ">=1"},
            ]
        }
    )

    old, missing = found["problems"]
    assert old.startswith("git: wanted >=99, found 2.")
    assert missing.startswith("nix: wanted >=2, found nothing: ")
    assert "no-such-tool" in missing


def test_a_job_that_fails_is_told_with_what_it_printed():
    job = asked({"smoke": "echo before\nfalse\necho after\n"})["smoke"]

    assert (job["ok"], job["output"]) == (False, "before\n")


def test_a_job_that_hangs_is_ended():
    job = asked({"smoke": "sleep 60", "smoke_seconds": 1})["smoke"]

    assert not job["ok"]
    assert "did not end within 1 s" in job["output"]


def test_a_compiler_that_is_broken_fails_the_shipped_job(tmp_path):
    rustc = tmp_path / "rustc"
    rustc.write_text("#!/bin/sh\necho no linker >&2\nexit 1\n")
    rustc.chmod(0o755)
    job = asked({"smoke": foundry._SMOKE.read_text()}, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})["smoke"]

    assert not job["ok"]
    assert "no linker" in job["output"]


def test_the_shipped_job_runs_here():
    job = asked({"smoke": foundry._SMOKE.read_text()}, env={"PATH": "/usr/bin:/bin"})["smoke"]

    assert job["ok"], job["output"]
    assert job["output"].endswith("the job is done\n")


def test_the_probe_needs_nothing_that_python_3_8_has_not():
    tree = ast.parse(Path(probe.__file__).read_text(), feature_version=(3, 8))
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    assert imported - set(sys.stdlib_module_names) == {"dagster_pipes"}
