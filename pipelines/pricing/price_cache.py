"""Published prices that were looked up today, kept in a file: the whole list takes 0.2 s and 15 MB to load."""

import contextlib
import os
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from pipelines.pricing.prices import Price, Tier, published_price


def cached_published_price(model: str, file: Path) -> Price | None:
    """The model's published price; looked up again each day, and where the list of prices has changed."""
    edition = _edition()
    known = _read(file).get(model)
    if known is not None and known.get("edition") == edition:
        return None if known["price"] is None else _price(known["price"])
    price = published_price(model)
    told = {**_read(file), model: {"edition": edition, "price": None if price is None else asdict(price)}}
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.part")
    # A cache that cannot be written is none.
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(orjson.dumps(told))
        unfinished.replace(file)
    return price


def _edition() -> str:
    spec = find_spec("genai_prices")
    changed = Path(spec.origin).stat().st_mtime_ns if spec is not None and spec.origin else 0
    return f"{datetime.now(UTC).date().isoformat()} {changed}"


def _read(file: Path) -> dict[str, Any]:
    try:
        told = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return told if isinstance(told, dict) else {}


def _price(told: dict[str, Any]) -> Price:
    tiers = tuple(Tier(**tier) for tier in told.pop("tiers"))
    sizes = tuple((size, rate) for size, rate in told.pop("image_sizes"))
    batch = told.pop("batch")
    return Price(**told, tiers=tiers, image_sizes=sizes, batch=None if batch is None else _price(batch))
