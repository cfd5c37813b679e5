"""Documents stay true: links lead somewhere, commands exist, settings are the real ones."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import typer

from akidb_pipelines.cli import app
from akidb_pipelines.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_and_their_options_exist(page):
    group = typer.main.get_command(app)
    for line in re.findall(r"(?:^ *|[/`(])akidb-pipelines ((?:[a-z]+ ?)+[^\n`#|&]*)", page.read_text(), re.MULTILINE):
        words = line.split()
        command = group
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, f"{page.name}: akidb-pipelines {line}"
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for option in (w for w in words if w.startswith("--")):
            assert option in options, f"{page.name}: akidb-pipelines {line}"


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


def test_the_fault_matrix_is_what_make_chaos_runs():
    matrix = (ROOT / "docs" / "reliability.md").read_text().split("## Load")[0]
    told = set(re.findall(r"[\w/]*test_\w+\.py", matrix))
    recipe = subprocess.run(["make", "-n", "chaos"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {f"tests/{path}" for path in told} <= set(recipe.split())


def test_every_setting_is_in_the_readme_and_no_other():
    told = set(re.findall(r"`AKIDB_([A-Z_]+)`", (ROOT / "README.md").read_text()))
    assert told == {name.upper() for name in Settings.model_fields}


def test_runbooks_that_the_ui_links_are_there():
    for source in (ROOT / "assets").glob("*.py"):
        for page in re.findall(r"runbook\(\"([^\"]+)\"\)", source.read_text()):
            assert (ROOT / "docs" / page).is_file(), page
