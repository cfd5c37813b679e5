"""Pictures of drills: a report's phases over time, and how long recoveries took over the quarters. PNG bytes, by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from akidb_pipelines.catalog.catalog import CataloguedDrill
from akidb_pipelines.drills.report import Report, stage_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"activation": "#7a8ca3", "recovery": "#2f6fb0", "reconstitution": "#4c9a63"}
_BAD = "#c0392b"


def timeline(report: Report) -> bytes:
    """A Gantt chart of a report's phases, with the fault, and the moment at which what was restored was verified."""
    from matplotlib.patches import Patch

    phases = [p for p in report.phases if p.status != "skipped"]
    figure = _figure(9, 1.4 + 0.3 * max(len(phases), 1))
    axes = figure.subplots()
    begin = _moment(report.started_at)
    for row, phase in enumerate(phases):
        start = _moment(phase.started_at) - begin
        colour = _COLOURS[stage_of(phase.phase)] if phase.status == "ok" else _BAD
        axes.barh(row, max(phase.seconds, 0.05), left=start, color=colour, height=0.7)
        axes.text(start + phase.seconds, row, f" {phase.seconds:.1f} s", va="center", fontsize=8)
    for moment, label, colour in ((report.fault_at, "fault", _BAD), (report.verified_at, "verified", _COLOURS["reconstitution"])):
        if moment:
            axes.axvline(_moment(moment) - begin, color=colour, linestyle="--", linewidth=1)
            axes.text(
                _moment(moment) - begin, 1.01, label, color=colour, ha="center", fontsize=8, transform=axes.get_xaxis_transform()
            )
    axes.set_yticks(range(len(phases)), [p.phase for p in phases])
    axes.invert_yaxis()
    axes.set_xlabel("seconds from the start of the drill")
    axes.margins(x=0.08)
    axes.set_xlim(left=0)
    rta = "" if report.rta_s is None else f", RTA {report.rta_s:.1f} s of {report.rto_target_s} s allowed"
    axes.set_title(f"{report.scenario} on {report.target}: {report.verdict}{rta}", fontsize=10, pad=14)
    handles = [Patch(color=c, label=s) for s, c in _COLOURS.items()]
    axes.legend(handles=handles, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
    return _png(figure)


def history(drills: Sequence[CataloguedDrill]) -> bytes:
    """Recovery time and point of past drills against their objectives, lab and OCI apart, on a logarithmic scale."""
    figure = _figure(9, 4.2)
    above, below = figure.subplots(2, 1, sharex=True)
    measured = [d for d in drills if not d.dry_run and d.rta_ms is not None]
    ticks = [f"{d.quarter}\n{d.scenario}" for d in measured]
    for axes, name, values, objective in (
        (above, "RTA (s)", [(d.rta_ms or 0) / 1000 for d in measured], "rto_target_s"),
        (below, "RPA (s)", [(d.rpa_ms or 0) / 1000 for d in measured], "rpo_target_s"),
    ):
        for target, marker in (("lab", "o"), ("oci", "s")):
            points = [(n, max(v, 0.1)) for n, (d, v) in enumerate(zip(measured, values, strict=True)) if d.target == target]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    marker,
                    label=target,
                    color=_COLOURS["recovery" if target == "oci" else "activation"],
                )
        if measured:
            limit = getattr(measured[-1], objective)
            axes.axhline(limit, color=_BAD, linestyle="--", linewidth=1)
            axes.text(0, limit, " objective", color=_BAD, fontsize=8, va="top")
            axes.set_ylim(0.5, limit * 3)
        axes.set_yscale("log")
        axes.set_ylabel(name)
    if measured:
        above.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    step = max(1, len(ticks) // 12)
    below.set_xticks(range(0, len(ticks), step), ticks[::step], rotation=20, fontsize=7)
    above.set_title("Recovery over past drills", fontsize=10)
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot: it keeps state, and looks for a display.
    figure = Figure(figsize=(width, height), layout="tight")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
