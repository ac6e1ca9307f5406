"""Faults of connections that no waiting cures, against servers that send scripted bytes."""

import pytest

from connectors.contracts import Provider
from connectors.records import Call, Reply
from connectors.transport.client import HttpTransport, RequestError, RequestTimeouts
from connectors.transport.fast_post import SWITCH
from tests.support.raw_http_server import RawHttpServer

ALERT = b"\x15\x03\x01\x00\x02\x02\x16"
NGINX = b"<center>The plain HTTP request was sent to HTTPS port</center>"
GO = b"Client sent an HTTP request to an HTTPS server.\n"


@pytest.mark.parametrize("switch", ["1", "0"])
@pytest.mark.parametrize(
    "answer",
    [ALERT, *(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text) for text in (NGINX, GO))],
    ids=["alert", "nginx", "Go"],
)
async def test_plain_http_to_a_tls_port_names_its_remedy(
    answer: bytes, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, switch)
    async with RawHttpServer() as server:
        server.answers, server.closes_after_last_answer = [answer], True
        transport = HttpTransport(RequestTimeouts(), 1)
        with pytest.raises(RequestError) as caught:
            await transport.send(Provider("a", server.base_url), Call("POST", "/chat/completions", b"{}"))
        await transport.close()
    assert (caught.value.error_class, caught.value.is_billable, str(caught.value)) == (
        "setup",
        False,
        "the server speaks TLS at this address; write https:// in base_url",
    )


async def test_a_refusal_that_only_quotes_such_words_stays_a_reply() -> None:
    async with RawHttpServer() as server:
        server.answers = [b"HTTP/1.1 400 Bad Request\r\nContent-Length: 9\r\n\r\nbad input"]
        transport = HttpTransport(RequestTimeouts(), 1)
        reply = await transport.send(Provider("a", server.base_url), Call("POST", "/chat/completions", b"{}"))
        await transport.close()
    assert isinstance(reply, Reply)
    assert (reply.status, reply.body) == (400, b"bad input")
