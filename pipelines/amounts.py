"""Money, time and bytes as people read them."""


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most so many columns, cut at spaces."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


def hanging(text: str, indent: int, width: int) -> list[str]:
    """The same, indented; all lines but the first two columns further."""
    lines = wrapped(text, width - indent - 2)
    return [f"{' ' * (indent + 2 * bool(place))}{line}" for place, line in enumerate(lines)]


def money(usd: float | None) -> str:
    """US dollars to two digits that say something, never rounded down to nothing; `not known` for None."""
    if usd is None:
        return "not known"
    if usd == 0 or usd >= 100:
        return f"${usd:,.0f}" if usd else "$0"
    if usd >= 0.1:
        return f"${usd:,.2f}"
    return f"${usd:.4f}" if usd >= 0.001 else f"${usd:.6f}"


def duration(seconds: float) -> str:
    """Seconds in words: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"


def size(amount: float) -> str:
    """Bytes in words."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= factor:
            return f"{amount / factor:,.1f} {unit}"
    return f"{amount:,.0f} bytes"
