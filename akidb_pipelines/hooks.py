"""The pre-commit hook: lint, typecheck, Cedar validation, each as far as the repository has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from akidb_pipelines.errors import InputError, OutsideError

MARK = "# written by akidb-pipelines hooks install"

_HOOK = """#!/bin/sh
{mark}
# Lint, typecheck and validate Cedar policies before a commit. Skip once with: git commit --no-verify
set -eu
cd "$(git rev-parse --show-toplevel)"
staged=$(git diff --cached --name-only --diff-filter=ACMR)
has() {{ printf '%s\\n' "$staged" | grep -qE "$1"; }}

if has '\\.py$' && [ -f pyproject.toml ]; then
    for tool in "ruff check ." mypy; do
        if command -v "${{tool%% *}}" >/dev/null; then $tool; else echo "pre-commit: no ${{tool%% *}} on PATH, skipped" >&2; fi
    done
fi
if has '\\.rs$' && [ -f Cargo.toml ]; then
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings
fi
if has '\\.(ts|tsx)$' && [ -f package.json ]; then
    npm run --if-present lint
    npm run --if-present typecheck
fi
if has '\\.(cedar|cedarschema)$'; then
    # The folders of what is staged are the sandboxes to check.
    printf '%s\\n' "$staged" | grep -E '\\.(cedar|cedarschema)$' | xargs -n1 dirname | sort -u | while read -r folder; do
        "{python}" -m akidb_pipelines cedar check --sandbox "$folder"
    done
fi
"""


def install(repository: Path) -> Path:
    """Write the hook into a git repository, and return its path. One that this command wrote before is replaced.

    Raises:
        InputError: not a repository, or it has a hook of somebody else's.
        OutsideError: there is no git.
    """
    command = ["git", "-C", str(repository), "rev-parse", "--git-path", "hooks"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise OutsideError(f"git does not run: {error}", hint="install git") from error
    if asked.returncode != 0:
        raise InputError(f"{repository} is no git repository: {asked.stderr.strip()}", hint="run it inside your akidb checkout")
    hook = repository / asked.stdout.strip() / "pre-commit"
    if hook.exists() and MARK not in hook.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{hook} exists and is not ours", hint="move it away, or call `akidb-pipelines cedar check` from it")
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text(_HOOK.format(mark=MARK, python=sys.executable), encoding="utf-8")
    hook.chmod(0o755)
    return hook
