"""Tables and the formats of money, time and bytes."""

import subprocess
import sys

import pytest

from pipelines.formatting import (
    DataTable,
    escape_control_characters,
    format_bytes,
    format_duration,
    format_money,
    format_percent,
    money_decimals,
    render,
    shorten_times,
)


def test_numbers_are_right_aligned_and_empty_columns_left_out() -> None:
    rows: list[dict[str, object]] = [{"a": "first", "b": 1.5, "c": 3000, "d": "x" * 20, "e": None}]
    assert render(DataTable(rows)).splitlines() == [
        "a        b      c  d",
        "─" * 39,
        "first  1.5  3,000  " + "x" * 20,
    ]
    assert render(DataTable(rows), 30).splitlines() == ["first", "  b  1.5", "  c  3,000", "  d  " + "x" * 20]
    assert render(DataTable([{"a": None}]), 30).splitlines()[0] == "a"


def test_output_that_is_not_a_terminal_is_neither_cut_nor_coloured() -> None:
    rows: list[dict[str, object]] = [{"job": "x" * 300, "message": "word " * 100}]
    _, _, row = render(DataTable(rows, wrapped="message")).splitlines()
    assert row == "x" * 300 + "  " + ("word " * 100).rstrip()


def test_a_terminal_gets_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1m" in render(DataTable([{"job": "reviews"}]), 200, is_terminal=True)


@pytest.mark.parametrize(
    ("amounts", "shown"),
    [
        ((0.0043, 0.0177, None), ["$0.0043", "$0.0177", "not known"]),
        ((9.4436, 0.0004), ["$9.4436", "$0.0004"]),
        ((9.4436, 0.00001), ["$9.4436", "<$0.0001"]),
        ((1234.5, 0.002), ["$1,234.50", "<$0.01"]),
        ((0.00008, 0.00016, 0.0), ["$0.000080", "$0.000160", "$0.000000"]),
        ((3.2, 0.41), ["$3.20", "$0.41"]),
        ((0,), ["$0.00"]),
    ],
)
def test_money_has_one_precision_a_screen(amounts: tuple[float | None, ...], shown: list[str]) -> None:
    decimals = money_decimals(amounts)
    assert [format_money(amount, decimals) for amount in amounts] == shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (174, "2 min 50 s"), (1300, "21 min"), (7500, "2 h 05 min")]
)
def test_the_time_left_is_no_finer_than_its_estimate(seconds: int, text: str) -> None:
    assert format_duration(seconds) == text


def test_100_percent_means_that_nothing_is_left() -> None:
    assert [format_percent(done, 3000) for done in (0, 1257, 2999, 3000)] == ["0 %", "42 %", "99 %", "100 %"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (626_800, "626.8 kB"), (311.9e6, "311.9 MB"), (2e9, "2.0 GB")],
)
def test_bytes_are_shown_in_the_largest_unit(number: float, text: str) -> None:
    assert format_bytes(number) == text


def test_control_characters_are_escaped() -> None:
    assert escape_control_characters("a\x1b[31mb\u202ec é") == r"a\x1b[31mb\u202ec é"


def test_times_are_shortened_to_the_minute() -> None:
    assert shorten_times("from 2026-11-24T01:12:09+00:00 on") == "from 2026-11-24 01:12Z on"


def test_rich_is_imported_only_to_draw() -> None:
    modules = ("cli", "execution.invocation", "planning.plan_text", "reporting.run_summary", "reporting.status_format")
    imports = "; ".join(f"import pipelines.{module}" for module in modules)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {imports}; sys.exit('rich' in sys.modules)"], check=False
    )
    assert done.returncode == 0
