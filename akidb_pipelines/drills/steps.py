"""What each phase does, on whatever target. A step says in one line what it found; what decides on the verdict it notes as a criterion."""

from __future__ import annotations

from akidb_pipelines.drills.drill import Step
from akidb_pipelines.drills.preparing import baseline, preflight
from akidb_pipelines.drills.proving import reconstitute, verify
from akidb_pipelines.drills.recovering import detect, evict, inject, join, rebuild, reschedule, restore
from akidb_pipelines.drills.scenarios import Phase

STEPS: dict[Phase, Step] = {
    Phase.PREFLIGHT: preflight,
    Phase.BASELINE: baseline,
    Phase.INJECT: inject,
    Phase.DETECT: detect,
    Phase.RESCHEDULE: reschedule,
    Phase.EVICT: evict,
    Phase.REBUILD: rebuild,
    Phase.JOIN: join,
    Phase.RESTORE: restore,
    Phase.VERIFY: verify,
    Phase.RECONSTITUTE: reconstitute,
}
"""The last phase, the report, is the desk's."""
