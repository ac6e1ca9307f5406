"""Quotations: exact and normalized matches, and their offsets in code points."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.quality.quotations import NOT_FOUND, Quotation, QuotedText


@pytest.mark.parametrize(
    ("text", "quotation", "expected"),
    [
        ("The bill is wrong.", "bill is", Quotation(4, 11, "exact")),
        ("no, no, no", "no", Quotation(0, 2, "exact")),
        ("A 🎉 party 🎉", "🎉 party", Quotation(2, 9, "exact")),
        ("The  bill\n is wrong", "bill is", Quotation(5, 13, "normalized")),
        ("The Bill IS wrong", "the bill is", Quotation(0, 11, "normalized")),
        ("She said “it’s late”.", '"it\'s late"', Quotation(9, 20, "normalized")),
        ("1990–2000", "1990-2000", Quotation(0, 9, "normalized")),
        ("the ﬁnal oﬀer", "final offer", Quotation(4, 13, "normalized")),
        ("Straße", "STRASSE", Quotation(0, 6, "normalized")),
        ("cafe\u0301 au lait", "café", Quotation(0, 5, "normalized")),
        ("ｆｕｌｌ width", "full width", Quotation(0, 10, "normalized")),
        ("한국어 text", "\u1112\u1161\u11ab국어", Quotation(0, 3, "normalized")),
        ("  padded  text  ", "  PADDED   text ", Quotation(2, 14, "normalized")),
        ("wait… what", "wait...", Quotation(0, 5, "normalized")),
        ("I don´t know", "don't", Quotation(2, 7, "normalized")),
        ("a 19″ screen", '19" screen', Quotation(2, 12, "normalized")),
        ("nothing here", "something", NOT_FOUND),
        ("nothing here", "", NOT_FOUND),
        ("nothing here", " \n\t ", NOT_FOUND),
        ("", "a", NOT_FOUND),
    ],
)
def test_a_quotation_is_found_with_its_offsets(text: str, quotation: str, expected: Quotation) -> None:
    assert QuotedText(text).find(quotation) == expected


def test_an_exact_match_is_preferred_to_an_earlier_normalized_one() -> None:
    assert QuotedText("The End. the end").find("the end") == Quotation(9, 16, "exact")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30), st.text(min_size=1, max_size=10), st.text(max_size=30))
def test_a_part_of_the_text_is_exact(before: str, quotation: str, after: str) -> None:
    text = before + quotation + after
    found = QuotedText(text).find(quotation)
    assert found.match == "exact"
    assert text[found.start : found.end] == quotation


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_characters="´″"), max_size=30), st.data())
def test_a_part_in_another_unicode_form_without_case_is_found(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    form = data.draw(st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
    part = text[start:end]
    if not part.strip() or unicodedata.normalize("NFKC", text) != "".join(
        unicodedata.normalize("NFKC", each) for each in (text[:start], part, text[end:])
    ):
        return
    found = QuotedText(text).find(unicodedata.normalize(form, part).casefold())
    assert found.match in ("exact", "normalized")
