"""The ladder of a step: which rung follows a failure, and which are left."""

from typing import Any

from connectors.endpoints.chat import ChatStep
from pipelines.dispatch.rescue.ladder import NO_RUNGS, Ladder


def step(*rungs: dict[str, Any]) -> ChatStep:
    return ChatStep.model_validate(
        {
            "name": "label",
            "endpoint": "chat",
            "provider": "test",
            "model": "m",
            "messages": [{"user": "{{ text }}"}],
            "params": {"temperature": 0, "max_tokens": 20},
            "pack": {"rows": 5},
            "rescue": rungs,
        }
    )


def test_a_rung_is_the_step_with_its_params_merged_and_provider_and_model_replaced() -> None:
    declared = step({"on": ["length"], "params": {"max_tokens": 99}}, {"on": ["length"], "provider": "p", "model": "b"})
    first, second = declared.rungs
    assert (first.provider, first.model, first.params) == ("test", "m", {"temperature": 0, "max_tokens": 99})
    assert (second.provider, second.model, second.params) == ("p", "b", {"temperature": 0, "max_tokens": 20})
    # Rungs request rows alone, and have no rungs of their own.
    assert [(one.pack, one.rescue) for one in declared.rungs] == [(None, ())] * 2
    assert declared.with_rungs == (declared, first, second)


def test_the_first_rung_for_the_class_that_was_not_tried_follows() -> None:
    ladder = Ladder.of(step({"on": ["length"], "params": {"n": 1}}, {"on": ["length", "bad_request"], "model": "b"}))
    assert ladder.next_place("length") == 1
    assert ladder.next_place("bad_request") == 2
    assert ladder.next_place("timeout") is None
    after_first = ladder.with_tried(frozenset(), 1)
    assert ladder.next_place("length", after_first) == 2
    after_second = ladder.with_tried(frozenset(), 2)
    # A later failure may go back to an earlier rung, which it has not tried.
    assert (ladder.next_place("length", after_second), ladder.next_place("bad_request", after_second)) == (1, None)
    assert ladder.next_place("length", after_first | after_second) is None
    assert ladder.rescued_classes() == {"length", "bad_request"}
    assert ladder.rescued_classes(after_second) == {"length"}
    assert ladder.rescued_classes(after_first | after_second) == set()


def test_rungs_with_the_same_requests_are_tried_once() -> None:
    ladder = Ladder.of(step({"on": ["length"], "model": "b"}, {"on": ["invalid_answer"], "model": "b"}))
    assert ladder.next_place("invalid_answer") == 2
    assert ladder.next_place("invalid_answer", ladder.with_tried(frozenset(), 1)) is None


def test_a_rung_with_the_requests_of_the_step_is_never_taken() -> None:
    ladder = Ladder.of(step({"on": ["length"], "provider": "test"}, {"on": ["length"], "model": "b"}))
    assert ladder.next_place("length") == 2
    assert (NO_RUNGS.next_place("length"), NO_RUNGS.rescued_classes()) == (None, set())
