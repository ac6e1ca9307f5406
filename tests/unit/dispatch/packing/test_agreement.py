"""Agreement of packed answers with single ones, and the pack size."""

import hashlib

import pytest

from connectors.records import RowError
from pipelines.dispatch.packing.agreement import PackAgreement, answers_agree, compared_columns, is_verified

FAILED = RowError("invalid_answer", "no")


def test_the_pack_size_is_halved_after_50_rows_with_too_little_agreement() -> None:
    agreement = PackAgreement(20, 0.95)
    changes = [agreement.record(number % 10 != 0) for number in range(50)]
    assert changes == [False] * 49 + [True]
    assert (agreement.rows, agreement.verified, agreement.share) == (10, 0, 0.9)


def test_the_count_begins_again_and_the_size_ends_at_1() -> None:
    agreement = PackAgreement(5, 0.95)
    sizes = []
    for _ in range(200):
        agreement.record(False)
        sizes.append(agreement.rows)
    assert [sizes[48], sizes[49], sizes[98], sizes[99], sizes[199]] == [5, 2, 2, 1, 1]


def test_enough_agreement_changes_nothing() -> None:
    agreement = PackAgreement(20, 0.95)
    assert not any(agreement.record(number % 25 != 24) for number in range(1000))
    assert agreement.share == 0.96


def test_a_batch_measures_and_does_not_halve() -> None:
    agreement = PackAgreement(20, 0.95, can_halve=False)
    assert not any(agreement.record(False) for _ in range(100))
    assert (agreement.rows, agreement.share) == (20, 0.0)


def test_the_share_of_verified_rows_is_chosen_by_fingerprint() -> None:
    fingerprints = [hashlib.blake2b(bytes([a, b]), digest_size=16).digest() for a in range(100) for b in range(100)]
    assert 60 <= sum(is_verified(fingerprint, 0.01) for fingerprint in fingerprints) <= 140
    assert not any(is_verified(fingerprint, 0) for fingerprint in fingerprints)
    assert all(is_verified(fingerprint, 1) for fingerprint in fingerprints)


@pytest.mark.parametrize(
    ("properties", "columns"),
    [
        (None, [0]),
        ({"a": {"type": "string"}, "b": {"type": "string", "enum": ["x"]}, "c": {"type": "integer"}}, [1, 2]),
        ({"a": {"type": ["boolean", "null"]}, "b": {"type": "number"}}, [0]),
        ({"a": {"type": "string"}, "b": {"type": "number"}}, [0, 1]),
    ],
)
def test_discrete_outputs_decide_and_without_them_all(properties: object, columns: list[int]) -> None:
    assert list(compared_columns(properties)) == columns  # type: ignore[arg-type]


def test_only_compared_outputs_must_be_equal() -> None:
    assert answers_agree(("a remark", "bug"), ("another", "bug"), [1])
    assert not answers_agree(("a", "bug"), ("a", "billing"), [1])


def test_a_failed_answer_agrees_with_none() -> None:
    assert not answers_agree(("a",), FAILED, [0])
    assert not answers_agree(FAILED, FAILED, [0])
