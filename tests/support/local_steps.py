"""Steps that make several rows of one, and a provider that refuses some of them."""

from typing import Any

from tests.conftest import Body, error_reply

PIECES = "{name: piece, each: {list: words}}"
ASK = '{name: fact, endpoint: chat, provider: test, model: m, messages: [{user: "{{ piece }}"}]}'
FOLD = '{name: all, fold: {facts: "list(fact order by piece_index)", pieces: count(*)}}'


def refuse(*texts: str) -> Any:
    """A script that refuses requests with these texts."""

    def script(path: str, body: Body, count: int) -> Any:
        refused = body["messages"][-1]["content"] in texts
        return error_reply(400, "no such word", "invalid_word") if refused else None

    return script
