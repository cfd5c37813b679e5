"""Building fixtures: against VACUUM INTO of the result, SQLite's own insert limit, the standard library, and Faker with an ORM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.measure import Line, measure

_IMPORTS = """
import os, sqlite3
from fractions import Fraction
from pathlib import Path
import apsw, numpy
from threadpoolctl import threadpool_limits
from akidb_pipelines.cedar.authorize import role_table
from akidb_pipelines.cedar.sandbox import load_sandbox
from akidb_pipelines.fixtures import build, documents, workload
from akidb_pipelines.fixtures.migrations import BOOKKEEPING, load_migrations
from akidb_pipelines.fixtures.profiles import profile_named
from akidb_pipelines.fixtures.truth import TruthFile
from akidb_pipelines.fixtures.world import Request, all_tenants
from akidb_pipelines.periods import Week
request = Request(Week.parse("2026-W47"), profile_named("load"), 2025, Fraction({scale!r}))
sandbox, migrations = load_sandbox(), load_migrations()
folder = Path({folder!r})
"""

_BUILD = "build.build_fixture(request, sandbox, migrations, folder)"
_VACUUM = """
target = folder / "vacuumed.db"
target.unlink(missing_ok=True)
apsw.Connection(str(folder / "load.db")).execute("VACUUM INTO ?", (str(target),))
target.unlink()
"""

# The same rows, statements and stages through either binding, without what only our build does (ground truth apart, digests).
_STAGES = """
def stages(connect, pragmas):
    path = folder / "bound.db"
    path.unlink(missing_ok=True)
    db = connect(str(path))
    for pragma in pragmas:
        list(db.execute("PRAGMA " + pragma))
    made = apsw.Connection(":memory:")
    build.create_schema(made, migrations)
    objects = list(made.execute("SELECT type, sql FROM sqlite_schema WHERE sql IS NOT NULL"))
    for kind, sql in objects:
        if kind == "table":
            db.execute(sql)
    db.execute("BEGIN")
    truth = TruthFile(folder / "truth.npz")
    with threadpool_limits(1, user_api="blas"):
        build._load(db, request, sandbox, truth, build.CHUNK, lambda _: None)
    truth.close()
    for kind, sql in objects:
        if kind != "table":
            db.execute(sql)
    db.execute("COMMIT")
    list(db.execute("PRAGMA foreign_key_check")), list(db.execute("PRAGMA quick_check"))
    (folder / "bound2.db").unlink(missing_ok=True)
    db.execute("VACUUM INTO ?", (str(folder / "bound2.db"),))
    db.close()
"""

# Rows made before the clock starts, then only inserted; against one statement of SQLite that inserts as many constants.
_INSERT = """
path = folder / "insert.db"
path.unlink(missing_ok=True)
db = apsw.Connection(str(path))
for pragma in build._PRAGMAS:
    list(db.execute("PRAGMA " + pragma))
build.create_schema(db, migrations)
build._take_indexes(db)
list(db.execute("PRAGMA foreign_keys = off"))
everyone = all_tenants(request)
"""
_AUDIT_ROWS = """
decisions = role_table(sandbox)
loads = [workload.Workload(t, [o for o in everyone if o is not t], decisions) for t in everyone]
chunks = [c for load in loads for c in load.chunks(build.CHUNK)]
"""
_DOCUMENT_ROWS = """
chunks = [p.rows for t in everyone for c in t.collections for p in documents.chunks(t, c, documents.Space(t, c), build.CHUNK // 2)]
"""
_LOAD_CHUNKS = """
with db:
    for chunk in chunks:
        build._insert(db, {table!r}, chunk)
value = sum(map(len, chunks))
"""
_STDLIB_CHUNKS = """
db.close()
other = sqlite3.connect(str(path), isolation_level=None)
for pragma in build._PRAGMAS:
    list(other.execute("PRAGMA " + pragma))
other.execute("BEGIN")
for chunk in chunks:
    build._insert(other, "audit_logs", chunk)
other.execute("COMMIT")
"""
_C_LIMIT = """
with db:
    db.execute('''INSERT INTO {table} ({columns}) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
    SELECT {constants} FROM n''')
value = {rows}
"""
_KEY = "CAST(printf('%016d', i) AS BLOB)"
_AUDIT_CONSTANTS = (
    f"{_KEY}, x'01952ACB74437AAD8C44651B4E300D81', x'01967324D3C3742A9C07706172B561CA', 'document::search', 'collection', "
    "'0195a8b6-4009-74c6-8267-c52dc49e2b21', 'allowed', 'policy:viewer-reads', '{\"k\":10,\"ef_search\":128,\"latency_us\":937}', "
    "'10.20.0.53', 'akidb-rust/2.0.0', '2026-11-09T00:01:04.923123+00:00'"
)
_DOCUMENT_CONSTANTS = (
    f"x'01957F9A5317739B9D0FA0F146EC87FC', {_KEY}, zeroblob(520), 'doc-2e6353aa1f27670a', "
    '\'{"category":"database","priority":"high","lang":"en","campaign":"none"}\', '
    "'2025-03-10T11:27:04.121123+00:00', '2025-03-10T11:27:04.121123+00:00'"
)

_FAKER_ORM = """
import hashlib, uuid
from faker import Faker
from sqlalchemy import create_engine, String, LargeBinary
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
class Base(DeclarativeBase): pass
class Audit(Base):
    __tablename__ = "audit_logs"
    audit_log_id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    action: Mapped[str]; resource_id: Mapped[str]; result: Mapped[str]; reason: Mapped[str]
    ip_address: Mapped[str]; user_agent: Mapped[str]; created_at: Mapped[str]
faker = Faker(); Faker.seed(1)
engine = create_engine("sqlite://"); Base.metadata.create_all(engine)
"""
_FAKER_ROWS = """
value = 3000
with Session(engine) as session:
    for n in range(value):
        session.add(Audit(audit_log_id=uuid.UUID(int=faker.random.getrandbits(128)).bytes, action="document::search",
            resource_id=faker.uuid4(), result=faker.random_element(["allowed", "denied"]), reason=faker.sentence(4),
            ip_address=faker.ipv4(), user_agent=faker.user_agent(), created_at=faker.date_time().isoformat()))
        session.flush()
    session.commit()
"""


def lines(folder: Path) -> Iterator[Line]:
    """Run the comparisons; `folder` takes about 3 GB while they run."""
    setup = _IMPORTS.format(scale="1", folder=str(folder))
    whole = measure(_BUILD, setup)
    vacuum = measure(_VACUUM, setup, runs=3)
    ratio = whole.cpu_s / vacuum.cpu_s
    told = f"{whole.cpu_s:.1f} s of CPU against {vacuum.cpu_s:.2f} s"
    yield Line("load: build / VACUUM INTO of its result", f"{ratio:.1f}x", "<= 12x", ratio <= 12, told)
    yield Line("load: peak memory", f"{whole.rss_mb:.0f} MB", "<= 300 MB", whole.rss_mb <= 300)
    double = measure(_BUILD, _IMPORTS.format(scale="2", folder=str(folder / "double")))
    growth = double.rss_mb / whole.rss_mb - 1
    yield Line("load: memory growth when rows double", f"{growth:+.0%}", "< 10%", growth < 0.10, f"{double.rss_mb:.0f} MB")

    for table, make, constants, goal in (
        ("audit_logs", _AUDIT_ROWS, _AUDIT_CONSTANTS, 0.35),
        ("vector_documents", _DOCUMENT_ROWS, _DOCUMENT_CONSTANTS, 0.30),
    ):
        ours = measure(_LOAD_CHUNKS.format(table=table), setup + _INSERT + make, runs=3)
        rows = int(ours.value or 0)
        sql = _C_LIMIT.format(table=table, columns=_columns(table), rows=rows, constants=constants)
        limit = measure(sql, setup + _INSERT, runs=3)
        ratio = limit.cpu_s / ours.cpu_s
        told = f"{rows / ours.cpu_s / 1000:.0f}k rows/s against {rows / limit.cpu_s / 1000:.0f}k"
        yield Line(f"load: {table} inserted / SQLite's insert limit", f"{ratio:.2f}", f">= {goal}", ratio >= goal, told)

    audit_setup = setup + _INSERT + _AUDIT_ROWS
    ours = measure(_LOAD_CHUNKS.format(table="audit_logs"), audit_setup, runs=3)
    theirs = measure(_STDLIB_CHUNKS, audit_setup, runs=3)
    ratio = theirs.cpu_s / ours.cpu_s
    told = f"1M audit rows in {ours.cpu_s:.1f} s against {theirs.cpu_s:.1f} s"
    yield Line("load: the same rows through stdlib sqlite3", f"{ratio:.2f}x slower", ">= 1.5x", ratio >= 1.5, told)

    # Making rows, indexes, checks and VACUUM are SQLite's or ours either way, so the whole differs by less: told, without a goal.
    ours = measure("stages(apsw.Connection, build._PRAGMAS)", setup + _STAGES)
    theirs = measure("stages(lambda p: sqlite3.connect(p, isolation_level=None), build._PRAGMAS)", setup + _STAGES)
    told = f"{ours.cpu_s:.1f} s against {theirs.cpu_s:.1f} s"
    yield Line(
        "load: every stage through stdlib sqlite3", f"{theirs.cpu_s / ours.cpu_s:.2f}x slower", "none", met=None, detail=told
    )

    audit = measure(_AUDIT_ROWS + _LOAD_CHUNKS.format(table="audit_logs"), setup + _INSERT)
    slow = measure(_FAKER_ROWS, _FAKER_ORM)
    ratio = ((audit.value or 0) / audit.cpu_s) / ((slow.value or 1) / slow.cpu_s)
    told = f"{(audit.value or 0) / audit.cpu_s / 1000:.0f}k rows/s against {(slow.value or 0) / slow.cpu_s:.0f}"
    yield Line("audit rows made and stored / Faker and ORM by row", f"{ratio:.0f}x", ">= 20x", ratio >= 20, told)


def _columns(table: str) -> str:
    from akidb_pipelines.fixtures.build import COLUMNS

    return ", ".join(COLUMNS[table])
