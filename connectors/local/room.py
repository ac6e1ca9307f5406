"""How much of what was answered is remembered."""

from connectors.local.api import State

MOST = 20_000
"""Objects of all kinds; beyond it the oldest answers are forgotten."""

ANSWERS = frozenset({"response", "chat.completion"})


def beside(answer_id: str) -> str:
    """The id under which the dialogue of a remembered answer is kept."""
    return f"{answer_id}/dialogue"


def make_room(state: State) -> None:
    """Forget the oldest answer where there are too many objects."""
    if len(state.objects) > MOST:
        oldest = next((one["id"] for one in state.objects.values() if one.get("object") in ANSWERS), None)
        if oldest is not None:
            forget(state, oldest)


def forget(state: State, answer_id: str) -> None:
    """A remembered answer and its dialogue."""
    del state.objects[answer_id]
    del state.objects[beside(answer_id)]
