"""Checks: which rows of a table fail which condition, and what a repair turn says about it."""

from collections.abc import Callable, Iterator

import pyarrow as pa
import pytest

from connectors.contracts import Check
from connectors.errors import JobError
from connectors.records import RowError
from pipelines.quality.checks import CheckFailure, Checks

WHERE = ("steps", "label", "check")
TABLE = pa.table({"body": ["a b", "c", None, "d"], "quote": ["b", "x", "y", None], "urgency": [1, 9, 3, 0]})

MakeChecks = Callable[..., Checks]


@pytest.fixture
def make_checks() -> Iterator[MakeChecks]:
    made: list[Checks] = []

    def make(*conditions: str | Check) -> Checks:
        checks = [one if isinstance(one, Check) else Check(that=one) for one in conditions]
        made.append(Checks(checks, TABLE.schema, WHERE))
        return made[-1]

    yield make
    for one in made:
        one.close()


def failure(message: str, advice: str) -> CheckFailure:
    return CheckFailure(
        RowError("invalid_answer", f"the answer fails the check {message}", code="check_failed"), advice
    )


def test_false_fails_and_true_and_null_pass(make_checks: MakeChecks) -> None:
    checks = make_checks("contains(body, quote)")
    assert checks.failures(TABLE) == {1: failure("contains(body, quote)", "contains(body, quote)")}
    assert checks.columns == {"body", "quote"}


def test_a_row_that_fails_several_checks_names_all_of_them(make_checks: MakeChecks) -> None:
    copied = Check(that="contains(body,\n quote)", message="Copy the quote.")
    checks = make_checks(copied, "urgency between 1 and 5 -- of five")
    assert checks.failures(TABLE) == {
        1: failure(
            "contains(body, quote): Copy the quote.; urgency between 1 and 5 -- of five",
            "Copy the quote.\nurgency between 1 and 5 -- of five",
        ),
        3: failure("urgency between 1 and 5 -- of five", "urgency between 1 and 5 -- of five"),
    }


def test_a_condition_that_breaks_on_a_row_fails_that_row_alone(make_checks: MakeChecks) -> None:
    checks = make_checks("length(body) > 0", "cast(quote as integer) >= 0")
    table = pa.table({"body": ["a", "", "c", "d"], "quote": ["1", "2", "x", None], "urgency": [0] * 4})
    assert checks.failures(table) == {
        1: failure("length(body) > 0", "length(body) > 0"),
        2: failure(
            "cast(quote as integer) >= 0 (Could not convert string 'x' to INT32 when casting from source column quote)",
            "cast(quote as integer) >= 0",
        ),
    }


def test_no_rows_have_no_failures(make_checks: MakeChecks) -> None:
    assert make_checks("urgency > 1").failures(TABLE.slice(0, 0)) == {}


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("urgensy > 1", "steps.label.check.1: no column urgensy here; did you mean urgency?"),
        ("body > 'a", "steps.label.check.1: "),
        ("urgency > 1, true", "steps.label.check.1: "),
        ("length(body)", "steps.label.check.1: its type is BIGINT; write a condition"),
        ("urgency > 1; select 1", "steps.label.check.1: "),
        ("urgency in (select 1)", "steps.label.check.1: contains a query"),
        ("list_contains(body, 1)", "steps.label.check.1: "),
    ],
)
def test_a_check_that_is_no_condition_is_refused_at_its_place(
    make_checks: MakeChecks, condition: str, message: str
) -> None:
    with pytest.raises(JobError) as found:
        make_checks("true", condition)
    assert str(found.value).startswith(message)


def test_a_check_opens_no_file(make_checks: MakeChecks) -> None:
    with pytest.raises(JobError):
        make_checks("(select count(*) from read_text('/etc/hostname')) > 0")
