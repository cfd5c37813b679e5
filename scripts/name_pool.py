"""Draws the frozen pool of names anew with Faker: python scripts/name_pool.py

Run it by hand only: a new pool changes every fixture. The digest that `akidb_pipelines/fixtures/names.py` holds must follow.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

from faker import Faker

POOL = Path(__file__).parent.parent / "akidb_pipelines" / "fixtures" / "names.json"


def plain(text: str) -> str:
    """ASCII without spaces, so that a name can stand in an address."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if c.isascii() and c.isalnum())


def draw(count: int, make: Callable[[], str]) -> list[str]:
    """So many different values, in the order met."""
    seen = dict.fromkeys(plain(make()) for _ in range(40 * count))
    if len(seen) < count:
        raise SystemExit(f"Faker offers only {len(seen)} of {count} different values")
    return list(seen)[:count]


def main() -> None:
    faker = Faker("en_US")
    Faker.seed(20251103)
    pool = {
        "first_names": draw(240, faker.first_name),
        "last_names": draw(480, faker.last_name),
        "words": draw(160, faker.word),
    }
    text = json.dumps(pool, ensure_ascii=True, indent=1) + "\n"
    POOL.write_text(text, encoding="ascii")
    print(hashlib.sha256(text.encode()).hexdigest())


if __name__ == "__main__":
    main()
