"""`python -m akidb_pipelines` is the `akidb-pipelines` command."""

from __future__ import annotations

from akidb_pipelines.cli import main

if __name__ == "__main__":
    main()
