"""Named faults: each is served as it is written, and has the class that its entry states."""

import httpx2 as httpx
import pytest

from connectors.emulator.faults.error_bodies import ERROR_REPLIES
from connectors.emulator.server import EmulatorOptions, EmulatorServer
from connectors.records import Reply
from connectors.transport.error_replies import row_error
from connectors.transport.reply_body import web_page

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello there."}]}


@pytest.mark.parametrize("name", ERROR_REPLIES)
def test_a_named_fault_is_served_with_the_class_of_its_entry(http: httpx.Client, name: str) -> None:
    with EmulatorServer(EmulatorOptions(script=name)) as server:
        reply = http.post(f"{server.base_url}/chat/completions", json=CHAT)
    entry = ERROR_REPLIES[name]
    received = Reply(reply.status_code, dict(reply.headers), reply.content, 1.0)
    page = web_page(received) if reply.status_code == 200 else None
    found = row_error(received) if page is None else page
    # The dispatcher knows `longest_hold`: a short wait turns a quota into a rate limit.
    expected = "quota" if name in ("quota-wait", "retry-info") else entry.error_class
    assert (reply.status_code, found.error_class) == (entry.status, expected)
