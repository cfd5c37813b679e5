"""The journal as a page: the newest entries of a day in a table, or all of them as JSON lines."""

from __future__ import annotations

from collections import deque
from datetime import date
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse

from akidb_pipelines.operations.access.journal import Journal

_SHOWN = 500
_COLUMNS = ("time", "user", "subject", "teams", "asked", "about", "right", "allowed", "policy", "address")
_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid #ddd; }
tr.denied { background: #fdeceb; }
td.about { font-family: ui-monospace, monospace; font-size: 12px; max-width: 30rem; word-break: break-all; }
nav a { margin-right: .7rem; }
"""


def decisions_page(journal: Journal, request: Request) -> Response:
    """`?day=2026-11-26&format=jsonl`; without a day the newest."""
    days = journal.days()
    asked = request.query_params.get("day")
    try:
        day = date.fromisoformat(asked) if asked else days[-1]
    except ValueError:
        return PlainTextResponse(f"{asked!r} is no day; write 2026-11-26", 400)
    if request.query_params.get("format") == "jsonl":
        return StreamingResponse(journal.read(day), media_type="application/jsonl")
    entries = deque(journal.entries(day), _SHOWN)
    return HTMLResponse(
        _html(day, days, entries), headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    )


def _html(day: date, days: list[date], entries: deque[dict[str, Any]]) -> str:
    links = "".join(f'<a href="?day={d}">{d}</a>' for d in reversed(days[-31:]))
    head = "".join(f"<th>{c}</th>" for c in _COLUMNS)
    rows = "".join(_row(e) for e in reversed(entries))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Decisions of {day}</title><style>{_STYLE}</style>"
        f"<h1>Access decisions of {day}</h1><nav>{links}</nav><p>The newest {_SHOWN} at most; "
        f'<a href="?day={day}&amp;format=jsonl">all of the day as JSON lines</a></p>'
        f"<table><tr>{head}</tr>{rows}</table></html>"
    )


def _row(entry: dict[str, Any]) -> str:
    def cell(column: str) -> str:
        value = entry.get(column, "")
        text = ", ".join(str(v) for v in value) if isinstance(value, list) else str(value)
        return f'<td class="{column}">{escape({"True": "allowed", "False": "denied"}.get(text, text))}</td>'

    return f'<tr class="{"" if entry.get("allowed") else "denied"}">{"".join(cell(c) for c in _COLUMNS)}</tr>'
