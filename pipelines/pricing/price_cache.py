"""Cache file of today's published prices: loading the whole list takes 0.2 s and 15 MB."""

import contextlib
import os
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
from msgspec import convert, to_builtins

from pipelines.pricing.prices import Price
from pipelines.pricing.published_prices import published_price

FORMAT = 2
"""Of an entry; entries of another format are looked up again."""


def cached_published_price(model: str, file: Path) -> Price | None:
    """Return the model's published price; looked up again each day, and if the price list has changed."""
    edition = _price_list_edition()
    entry = _read(file).get(model)
    if entry is not None and entry.get("edition") == edition:
        return None if entry["price"] is None else convert(entry["price"], Price)
    price = published_price(model)
    entries = {**_read(file), model: {"edition": edition, "price": to_builtins(price)}}
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.part")
    # A cache that cannot be written is ignored.
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(orjson.dumps(entries))
        unfinished.replace(file)
    return price


def _price_list_edition() -> str:
    spec = find_spec("genai_prices")
    changed = Path(spec.origin).stat().st_mtime_ns if spec is not None and spec.origin else 0
    return f"{datetime.now(UTC).date().isoformat()} {changed} {FORMAT}"


def _read(file: Path) -> dict[str, Any]:
    try:
        entries = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return entries if isinstance(entries, dict) else {}
