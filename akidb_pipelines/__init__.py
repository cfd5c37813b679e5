"""The workflows that keep AkiDB 2.0's development infrastructure alive.

The library does the work and knows nothing of Dagster; `assets/` and `schedules/` put it into the UI. See docs/adr/0001-architecture.md.
"""

from __future__ import annotations

__version__ = "0.1.0"
