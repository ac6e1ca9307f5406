"""The emulator as a server: keys, limits, faults, headers, errors, start and stop."""

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import pytest

from connectors.emulator.api import ApiError
from connectors.emulator.faults.fault_injection import KINDS, STATUSES
from connectors.emulator.rate_limits import RequestLimits, duration
from connectors.emulator.server import EmulatorOptions, EmulatorServer

Serve = Callable[..., str]
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello there. How are you?"}]}


def ask(http: httpx.Client, base_url: str, **options: Any) -> httpx.Response:
    return http.post(f"{base_url}/chat/completions", json=CHAT, **options)


def test_every_answer_has_a_request_id_and_the_local_mark(base_url: str, http: httpx.Client) -> None:
    replies = [ask(http, base_url), http.get(f"{base_url}/models"), http.get(f"{base_url}/nothing")]
    assert [reply.status_code for reply in replies] == [200, 200, 404]
    assert len({reply.headers["x-request-id"] for reply in replies}) == 3
    for reply in replies:
        assert reply.headers["x-rowmill-local"] == "1"
        assert int(reply.headers["openai-processing-ms"]) >= 0
        assert not [name for name in reply.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize(("method", "path"), [("GET", "/nothing"), ("PUT", "/models"), ("GET", "/embeddings")])
def test_an_unknown_path_or_method_is_a_404_in_the_apis_wording(
    base_url: str, http: httpx.Client, method: str, path: str
) -> None:
    reply = http.request(method, base_url + path)
    assert reply.status_code == 404
    assert reply.json() == {
        "error": {
            "message": f"Invalid URL ({method} /v1{path})",
            "type": "invalid_request_error",
            "param": None,
            "code": "unknown_url",
        }
    }


def test_any_key_or_none_is_accepted_unless_one_is_set(base_url: str, serve: Serve, http: httpx.Client) -> None:
    assert ask(http, base_url).status_code == 200
    locked = serve(api_key="sesame")
    assert ask(http, locked, headers={"Authorization": "Bearer sesame"}).status_code == 200
    for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic sesame"}):
        for reply in (ask(http, locked, headers=headers), http.get(f"{locked}/models", headers=headers)):
            assert reply.status_code == 401
            assert reply.json()["error"] == {
                "message": "Incorrect API key provided",
                "type": "invalid_request_error",
                "param": None,
                "code": "invalid_api_key",
            }


@pytest.mark.parametrize("body", [b"{", b"[]", b'"text"', b"\xff\xfe"])
def test_a_body_other_than_a_json_object_is_a_400(base_url: str, http: httpx.Client, body: bytes) -> None:
    reply = http.post(f"{base_url}/chat/completions", content=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "invalid_json"


MALFORMED = {
    "version": (
        b"GET /v1 HTTP/9.9\r\n\r\n",
        "Bad status line: Invalid HTTP version: b'GET /v1 HTTP/9.9'",
    ),
    "header": (b"GET /v1/models HTTP/1.1\r\nfoo bar\r\n\r\n", "Invalid header token: b'foo bar'"),
    "gzip": (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 8\r\n\r\nnot gzip",
        "Can not decode content-encoding: gzip",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_http_is_a_400_and_one_line_in_the_log(
    base_url: str, http: httpx.Client, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    request, words = MALFORMED[name]
    with socket.create_connection(("127.0.0.1", httpx.URL(base_url).port or 0), timeout=10) as connection:
        connection.sendall(request)
        reply = connection.makefile("rb").read()
    assert b" 400 Bad Request\r\n" in reply.partition(b"\r\n\r\n")[0] + b"\r\n"
    assert [(record.name, record.getMessage(), record.exc_info) for record in caplog.records] == [
        ("rowmill.serve", f"Refused a malformed HTTP request: {words}", None)
    ]
    assert ask(http, base_url).status_code == 200


def test_a_form_with_an_unknown_encoding_is_a_400(base_url: str, http: httpx.Client) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="file"\r\nContent-Transfer-Encoding: rot13\r\n\r\nabc\r\n'
    reply = http.post(
        f"{base_url}/audio/transcriptions",
        content=part + b"--x--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == (
        "We could not parse the form of your request: unknown content transfer encoding: rot13."
    )


def test_a_body_above_the_limit_is_a_413(base_url: str, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.emulator.server.MAX_BODY_BYTES", 1000)
    with EmulatorServer() as server:
        reply = http.post(f"{server.base_url}/chat/completions", content=b'{"model":"' + b"x" * 2000 + b'"}')
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("kind", STATUSES)
def test_a_scripted_status_has_the_apis_format_and_regular_answers_follow(
    serve: Serve, http: httpx.Client, kind: str
) -> None:
    base_url = serve(script=kind)
    failed = ask(http, base_url)
    assert failed.status_code == int(kind)
    assert set(failed.json()["error"]) == {"message", "type", "param", "code"}
    assert ask(http, base_url).status_code == 200


def test_a_script_repeats_and_lets_through(serve: Serve, http: httpx.Client) -> None:
    base_url = serve(script="429, 200, 500*2,quota")
    replies = [ask(http, base_url) for _ in range(6)]
    assert [reply.status_code for reply in replies] == [429, 200, 500, 500, 429, 200]
    assert (replies[0].headers["retry-after-ms"], replies[0].headers["retry-after"]) == ("100", "1")
    assert replies[4].json()["error"]["code"] == "insufficient_quota"
    assert "retry-after" not in replies[4].headers


def test_lookups_are_exempt_from_limits_and_faults(serve: Serve, http: httpx.Client) -> None:
    base_url = serve(script="500", requests_per_minute=1)
    assert [http.get(f"{base_url}/models").status_code for _ in range(3)] == [200] * 3
    assert ask(http, base_url).status_code == 500


def test_faults_by_rate_are_the_same_for_the_same_seed(serve: Serve, http: httpx.Client) -> None:
    def statuses(seed: int) -> list[int]:
        base_url = serve(faults=("500=0.3", "429=0.2"), seed=seed)
        return [ask(http, base_url).status_code for _ in range(40)]

    first = statuses(1)
    assert first == statuses(1) != statuses(2)
    assert set(first) == {200, 429, 500}


def test_a_dropped_connection_has_no_reply(serve: Serve, http: httpx.Client) -> None:
    base_url = serve(script="dropped")
    with pytest.raises(httpx.RemoteProtocolError):
        ask(http, base_url)
    assert ask(http, base_url).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_truncated_answer_ends_early(serve: Serve, http: httpx.Client, stream: bool) -> None:
    base_url = serve(script="truncated")
    with pytest.raises(httpx.RemoteProtocolError, match="peer closed"):
        http.post(f"{base_url}/chat/completions", json={**CHAT, "stream": stream})


@pytest.mark.parametrize("stream", [False, True])
def test_a_hanging_body_sends_a_part_and_then_nothing(serve: Serve, http: httpx.Client, stream: bool) -> None:
    base_url = serve(script="hang-body")
    got: list[bytes] = []
    with (
        http.stream(
            "POST", f"{base_url}/chat/completions", json={**CHAT, "stream": stream}, timeout=httpx.Timeout(5, read=0.3)
        ) as reply,
        pytest.raises(httpx.ReadTimeout),
    ):
        assert reply.status_code == 200
        got.extend(reply.iter_raw())
    assert ask(http, base_url).status_code == 200


def test_a_hang_never_answers_and_the_server_still_ends(http: httpx.Client) -> None:
    with EmulatorServer(EmulatorOptions(script="hang*2")) as server:
        with pytest.raises(httpx.ReadTimeout):
            ask(http, server.base_url, timeout=httpx.Timeout(5, read=0.2))
        waiting = threading.Thread(target=_ignore, args=(server.base_url,))
        waiting.start()
    waiting.join(10)
    assert not waiting.is_alive()


def _ignore(base_url: str) -> None:
    try:
        httpx.post(f"{base_url}/chat/completions", json=CHAT, timeout=10)
    except httpx.HTTPError:
        return


@pytest.mark.parametrize(
    ("kind", "status", "body"), [("malformed", 200, r"\{.*[^}]"), ("empty", 200, ""), ("html", 502, r"<html>.*</html>")]
)
def test_faults_can_send_bodies_other_than_json(
    serve: Serve, http: httpx.Client, kind: str, status: int, body: str
) -> None:
    reply = ask(http, serve(script=kind))
    assert reply.status_code == status
    assert re.fullmatch(body, reply.text, re.S)
    with pytest.raises(ValueError):
        reply.json()


def test_a_malformed_stream_has_an_event_with_invalid_json(serve: Serve, http: httpx.Client) -> None:
    reply = http.post(f"{serve(script='malformed')}/chat/completions", json={**CHAT, "stream": True})
    assert 'data: {"id": "chatcmpl-\n\n' in reply.text
    assert reply.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"faults": ("boom=0.1",)}, "fault 'boom': no such kind; write one of 400, "),
        ({"faults": ("500",)}, "fault '500': has no rate; write KIND=RATE"),
        ({"faults": ("500=2",)}, "has no rate"),
        ({"faults": ("500=nan",)}, "has no rate"),
        ({"faults": ("500=0.6", "hang=0.6")}, "add up to 1.2"),
        ({"script": "429,oops"}, "fault 'oops': no such kind"),
        ({"script": "500*x"}, "has no count"),
    ],
)
def test_an_invalid_fault_is_rejected_with_a_clear_message(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        EmulatorOptions(**options)


def test_every_kind_of_fault_has_a_rate() -> None:
    EmulatorOptions(faults=tuple(f"{kind}=0.01" for kind in KINDS))


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def admitted(limits: RequestLimits, tokens: int = 1) -> bool:
    try:
        limits.admit(tokens)
    except ApiError:
        return False
    return True


@pytest.mark.parametrize(("per_minute", "burst"), [(30, 1), (60, 1), (600, 10), (6000, 100)])
def test_a_burst_of_one_second_is_allowed(per_minute: int, burst: int) -> None:
    clock = Clock()
    limits = RequestLimits(per_minute, None, clock)
    assert sum(admitted(limits) for _ in range(burst * 2)) == burst
    clock.now += 60 / per_minute
    assert [admitted(limits), admitted(limits)] == [True, False]
    clock.now += 3600
    assert sum(admitted(limits) for _ in range(burst * 2)) == burst


def test_tokens_above_the_remaining_amount_become_debt() -> None:
    clock = Clock()
    limits = RequestLimits(None, 6000, clock)
    assert admitted(limits, 300)
    assert not admitted(limits)
    clock.now += 2.01
    assert admitted(limits, 50)
    limits.settle(reserved=50, used=250)
    clock.now += 2.4
    assert not admitted(limits)
    clock.now += 0.1
    assert admitted(limits)


def test_a_rate_limit_error_says_when_to_retry() -> None:
    clock = Clock()
    limits = RequestLimits(6, None, clock)
    limits.admit(1)
    with pytest.raises(ApiError) as caught:
        limits.admit(1)
    assert caught.value.status == 429
    assert caught.value.headers == {"retry-after": "10", "retry-after-ms": "10000"}
    assert caught.value.body == {
        "error": {
            "message": "Rate limit reached for requests: Limit 6 per min. Please try again in 10s.",
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    }
    assert limits.headers() == {
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "10s",
    }


def test_limited_answers_have_headers_with_the_remaining_amounts(serve: Serve, http: httpx.Client) -> None:
    base_url = serve(requests_per_minute=60, tokens_per_minute=600_000)
    first, second = ask(http, base_url), ask(http, base_url)
    assert (first.status_code, second.status_code) == (200, 429)
    for reply in (first, second):
        assert reply.headers["x-ratelimit-limit-requests"] == "60"
        assert reply.headers["x-ratelimit-remaining-requests"] == "0"
        assert reply.headers["x-ratelimit-limit-tokens"] == "600000"
        assert 9000 < int(reply.headers["x-ratelimit-remaining-tokens"]) <= 10000
        assert re.fullmatch(r"\d+ms|1s", reply.headers["x-ratelimit-reset-requests"])
    assert 0 < int(second.headers["retry-after-ms"]) <= 1000
    assert second.json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0ms"), (0.006, "6ms"), (1, "1s"), (8.64, "8.64s"), (60, "1m0s"), (360, "6m0s"), (3661.5, "1h1m1.5s")],
)
def test_durations_have_the_apis_format(seconds: float, written: str) -> None:
    assert duration(seconds) == written


def test_latency_delays_each_answer(serve: Serve, http: httpx.Client) -> None:
    reply = ask(http, serve(latency_ms=150))
    assert int(reply.headers["openai-processing-ms"]) >= 149


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_prints_its_address_and_exits_cleanly_on_a_signal(number: int) -> None:
    served = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVE],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert served.stderr is not None
    line = served.stderr.readline()
    (base_url,) = re.findall(r"http://127\.0\.0\.1:\d+/v1", line)
    with httpx.Client() as http:
        assert ask(http, base_url).status_code == 200
        served.send_signal(number)
        assert served.wait(10) == 0
    assert served.stderr.read() == ""
    served.stderr.close()


SERVE = """
import sys
from connectors.emulator.server import EmulatorOptions, serve_forever
serve_forever("127.0.0.1", 0, EmulatorOptions(), lambda words: print(words, file=sys.stderr, flush=True))
"""


def test_a_used_port_is_an_oserror() -> None:
    from connectors.emulator.server import serve_forever

    with EmulatorServer() as server:
        port = int(server.base_url.rsplit(":", 1)[1].removesuffix("/v1"))
        with pytest.raises(OSError):
            serve_forever("127.0.0.1", port, EmulatorOptions(), print)
