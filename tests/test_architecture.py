"""The house's rules that a machine can hold: arrows point down, loading is light, nothing is read at import."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Highest first; a module may import from its own layer's package and from lower layers only.
LAYERS = [
    {"akidb_pipelines.__main__"},
    {"akidb_pipelines.cli"},
    {"akidb_pipelines.run"},
    {"akidb_pipelines.definitions"},
    {"schedules"},
    {"assets", "akidb_pipelines.operations"},
    {"akidb_pipelines.resources", "akidb_pipelines.instance", "akidb_pipelines.doctor", "akidb_pipelines.hooks"},
    {"akidb_pipelines.lab"},
    {"akidb_pipelines.health"},
    {"akidb_pipelines.drills"},
    {"akidb_pipelines.fixtures", "akidb_pipelines.images", "akidb_pipelines.backups", "akidb_pipelines.costs"},
    {"akidb_pipelines.quality"},
    {"akidb_pipelines.cedar", "akidb_pipelines.store", "akidb_pipelines.catalog", "akidb_pipelines.machines"},
    {
        "akidb_pipelines.settings",
        "akidb_pipelines.files",
        "akidb_pipelines.periods",
        "akidb_pipelines.progress",
        "akidb_pipelines.vault",
    },
    {"akidb_pipelines.errors", "akidb_pipelines"},
]
KNOW_DAGSTER = {"akidb_pipelines.run", "akidb_pipelines.definitions"}


def modules() -> dict[str, Path]:
    found = {}
    for top in ("akidb_pipelines", "assets", "schedules"):
        for path in (ROOT / top).rglob("*.py"):
            if "migrations/" in path.as_posix():
                continue  # Alembic loads these by path
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def place(module: str) -> tuple[int, str]:
    """Level of a module, and the package of that level that it is in."""
    matches = [
        (level, name)
        for level, names in enumerate(LAYERS)
        for name in names
        if module == name or (module.startswith(f"{name}.") and name != "akidb_pipelines")
    ]
    assert matches or module in {"akidb_pipelines.__version__"}, f"{module} has no layer: give it one in LAYERS"
    return max(matches, key=lambda m: len(m[1])) if matches else (len(LAYERS) - 1, "akidb_pipelines")


@pytest.mark.parametrize("module", sorted(modules()))
def test_arrows_point_down(module):
    level, package = place(module)
    known = modules()
    for imported in imports(modules()[module]):
        top = imported.split(".")[0]
        if top not in {"akidb_pipelines", "assets", "schedules"}:
            continue
        target = imported if imported in known else imported.rpartition(".")[0]
        other_level, other = place(target if target in known else imported)
        assert other == package or other_level > level, f"{module} imports {imported}, which is not below it"


@pytest.mark.parametrize("module", sorted(m for m in modules() if m.startswith("akidb_pipelines")))
def test_only_the_composition_root_knows_dagster(module):
    if module in KNOW_DAGSTER or module.startswith("akidb_pipelines.operations"):
        return
    names = {name.split(".")[0] for name in imports(modules()[module])}
    assert not names & {"dagster", "assets", "schedules"}, f"{module} imports Dagster's side"


HEAVY = (
    "great_expectations",
    "pandas",
    "oci",
    "duckdb",
    "boto3",
    "botocore",
    "tuf",
    "securesystemslib",
    "hvac",
    "matplotlib",
    "faker",
    "sqlalchemy",
    "numpy",
    "apsw",
    "alembic",
    "zstandard",
)


def test_loading_the_code_location_imports_nothing_heavy():
    code = f"import sys; from akidb_pipelines.definitions import defs; defs(); print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_every_module_reads_no_setting(tmp_path):
    """A broken setting must not matter before somebody asks for settings."""
    names = [m for m in modules() if m not in {"akidb_pipelines.__main__"}]
    code = "import importlib\n" + "\n".join(f"importlib.import_module({m!r})" for m in names)
    environment = {**os.environ, "AKIDB_SEED": "not a number", "AKIDB_STORE": "nonsense://"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment)


def test_modules_stay_small_enough_to_have_one_job():
    long = {m: n for m, p in modules().items() if (n := len(p.read_text().splitlines())) > 450}
    assert not long
