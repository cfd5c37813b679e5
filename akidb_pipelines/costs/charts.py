"""Pictures of a review: lines against their plan, teams, quotas, cost by day. PNG bytes, by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from datetime import date
from typing import TYPE_CHECKING, Any

from akidb_pipelines.costs.review import Review

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DONE, _EXPECTED, _BAD, _LIMIT = "#2f6fb0", "#a9c6e3", "#c0392b", "#7a8ca3"
_VARIES = 1.1
"""What is the same every day would push all else to the bottom of the picture."""
_COLOURS = ("#2f6fb0", "#4c9a63", "#d08b2c", "#8a5fb0", "#c0392b", "#7a8ca3", "#3fa0a0", "#b05f7a")


def lines_chart(review: Review) -> bytes:
    """Each line's cost so far and forecast, in percent of its plan: labour is so much of the total that amounts would hide all else."""
    shown = [s for s in review.lines if s.budget > 0]
    figure = _figure(9, 1.6 + 0.55 * max(len(shown), 1))
    axes = figure.subplots()
    for row, s in enumerate(shown):
        scale = 100 / float(s.budget)
        f = s.forecast
        axes.barh(row, f.expected * scale, color=_BAD if s.overrun else _EXPECTED, height=0.62)
        axes.barh(row, float(s.actual) * scale, color=_DONE, height=0.62)
        axes.errorbar(
            f.expected * scale,
            row,
            xerr=[[(f.expected - f.low) * scale], [(f.high - f.expected) * scale]],
            color="black",
            capsize=3,
            linewidth=1,
        )
        axes.text(
            max(f.high * scale, 100) + 2, row, f"${f.expected:,.0f} of ${s.budget:,.0f}", va="center", fontsize=8, parse_math=False
        )
    axes.axvline(100, color=_LIMIT, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(shown)), [s.title for s in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("percent of the plan: so far (dark), expected (light), interval of 80 in 100")
    axes.margins(x=0.18)
    axes.set_xlim(left=0)
    return _png(figure, review, f"{review.month}: lines against plan, as of {review.as_of}")


def teams_chart(review: Review) -> bytes:
    """Who pays how much."""
    figure = _figure(9, 1.4 + 0.4 * max(len(review.teams), 1))
    axes = figure.subplots()
    for row, (team, paid) in enumerate(review.teams):
        axes.barh(row, float(paid), color=_BAD if team in {"untagged", "unallocated"} else _DONE, height=0.62)
        axes.text(float(paid), row, f" ${paid:,.2f}", va="center", fontsize=8, parse_math=False)
    axes.set_yticks(range(len(review.teams)), [team for team, _ in review.teams], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(review.plan.currency)
    return _png(figure, review, f"{review.month}: who pays, shared costs split")


def quotas_chart(review: Review) -> bytes:
    """What stands against each quota, by day, in percent of it."""
    figure = _figure(9, 3.4)
    axes = figure.subplots()
    for colour, b in zip(_COLOURS, review.burns, strict=False):
        if b.series:
            axes.plot(
                _days(b.series),
                [v * 100 / b.limit for _, v in b.series],
                color=colour,
                label=f"{b.quota.title}: {b.fraction:.0%}",
            )
        if b.exhausted_on and b.as_of:
            axes.plot(_dates(b.as_of, b.exhausted_on), [b.fraction * 100, 100], color=colour, linestyle=":")
    axes.axhline(100, color=_BAD, linestyle="--", linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("percent of the quota")
    axes.tick_params(axis="x", labelrotation=20, labelsize=8)
    if any(b.series for b in review.burns):
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False)
    return _png(figure, review, "quotas, with where they lead (dotted)")


def daily_chart(review: Review) -> bytes:
    """Cost by day of every service that varies, with the days that stand out."""
    figure = _figure(9, 3.6)
    axes = figure.subplots()
    varying = [
        (title, days) for title, days in review.daily if days and max(v for _, v in days) > _VARIES * min(v for _, v in days)
    ]
    for colour, (title, days) in zip(_COLOURS, varying, strict=False):
        axes.plot(_days(days), [v for _, v in days], color=colour, label=title, linewidth=1.2)
    for a in review.anomalies:
        axes.plot(_dates(a.day), [a.cost], "o", color=_BAD, markersize=7, fillstyle="none")
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{review.plan.currency} a day")
    axes.tick_params(axis="x", labelrotation=20, labelsize=8)
    if varying:
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False)
    return _png(figure, review, "cost by day; circles: days that stand out")


CHARTS: dict[str, Callable[[Review], bytes]] = {
    "lines.png": lines_chart,
    "teams.png": teams_chart,
    "quotas.png": quotas_chart,
    "daily.png": daily_chart,
}
"""In the order in which the page shows them."""


def _days(series: Iterable[tuple[date, float]]) -> Any:
    return _dates(*(day for day, _ in series))


def _dates(*days: date) -> Any:
    """Matplotlib takes dates; its types do not say so."""
    return list(days)


def _figure(width: float, height: float) -> Figure:
    # Not pyplot, which keeps every figure and is not safe beside other threads.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _png(figure: Any, review: Review, title: str) -> bytes:
    figure.suptitle(f"{title}{' - SAMPLE DATA' if review.sample else ''}", fontsize=10)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
