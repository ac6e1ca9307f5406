"""Who may use the page of `rowmill watch`: token, cookie, Host, forms, and what rows can and cannot do."""

import http.client
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.dashboard.access import HEADERS
from pipelines.dashboard.server import MAX_STREAMS
from tests.behaviour.dashboard.conftest import OpenWatch, Watch
from tests.conftest import Workspace

DATA = Path(__file__).parents[3] / "jobs" / "data"
PATHS = ("/", "/runs", "/schedule", "/jobs/job", "/jobs/job/rows", "/jobs/job/row?key=1", "/events", "/watch.css")


@pytest.fixture
def page(workspace: Workspace, watch: OpenWatch) -> Watch:
    """The page of a workspace with a job that never ran."""
    workspace.csv(2)
    workspace.job()
    return watch(workspace.folder)


def test_nothing_is_shown_without_the_token(page: Watch) -> None:
    for path in PATHS:
        reply = page.request("GET", path)
        assert (reply.status, reply.text) == (
            403,
            "Open the address that `rowmill watch` has printed: it holds the token of this page.\n",
        ), path
    # An error page would name the folder.
    assert page.request("OPTIONS", "/").text == page.request("GET", "/").text
    assert page.request("GET", "/?token=wrong").status == 403
    assert page.request("GET", "/", Cookie=f"rowmill_{page.port}=wrong").status == 403


def test_the_token_of_the_printed_address_becomes_a_cookie_that_no_script_reads(page: Watch) -> None:
    reply = page.request("GET", f"/jobs/job?token={page.access.token}")
    assert (reply.status, reply.headers["Location"]) == (303, "/jobs/job")
    assert reply.headers["Set-Cookie"] == f"{page.cookie}; HttpOnly; Path=/; SameSite=Strict"
    assert page.get("/jobs/job").status == 200
    elsewhere = page.request("GET", f"//other.test/?token={page.access.token}")
    assert elsewhere.headers["Location"] == "/other.test/"


@pytest.mark.parametrize("host", ["other.test", "127.0.0.1.other.test", "user@127.0.0.1:80", "127.0.0.1:x", ""])
def test_a_request_that_names_another_host_is_refused(page: Watch, host: str) -> None:
    reply = page.request("GET", "/", Cookie=page.cookie, Host=host)
    assert (reply.status, "job" in reply.text) == (403, False)


def test_a_tunnel_may_use_another_port(page: Watch) -> None:
    reply = page.request("GET", "/", Cookie=f"rowmill_9000={page.access.token}", Host="localhost:9000")
    assert reply.status == 200


def test_every_page_forbids_scripts_styles_and_addresses_of_others(page: Watch) -> None:
    for path in (*PATHS[:-2], "/nothing"):
        reply = page.get(path)
        policy = dict(part.split(" ", 1) for part in reply.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "connect-src", "form-action")} == {"'self'"}
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert re.findall(r"<script(?! src=\"/watch.js\" defer></script>)|<style| style=| on\w+=", reply.text) == []
        assert reply.outside_addresses == []


def test_only_forms_of_the_page_steer(page: Watch) -> None:
    path, form = "/jobs/job/control", f"form={page.access.form_token}&command=pause"
    own = {"Origin": f"http://127.0.0.1:{page.port}", "Content_Type": "application/x-www-form-urlencoded"}
    refused = {
        "no cookie": page.request("POST", path, form, **own),
        "no origin": page.request("POST", path, form, Cookie=page.cookie, Content_Type=own["Content_Type"]),
        "another site": page.request("POST", path, form, Cookie=page.cookie, **{**own, "Origin": "http://other.test"}),
        "no form token": page.request("POST", path, "command=pause", Cookie=page.cookie, **own),
        "another site by metadata": page.request(
            "POST", path, form, Cookie=page.cookie, Sec_Fetch_Site="same-site", **own
        ),
    }
    assert {name: reply.status for name, reply in refused.items()} == dict.fromkeys(refused, 403)
    assert [page.get(f"{path}?command=pause").status, page.request("PUT", "/", Cookie=page.cookie).status] == [405, 405]
    # The form itself is accepted: the job is not running.
    reply = page.post(path, command="pause")
    assert reply.status == 409
    assert "job: this job is not running; start it with: rowmill run" in reply.words()


def test_a_form_that_no_browser_sends_is_refused_without_a_traceback(
    page: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    form, own = f"form={page.access.form_token}", {"Cookie": page.cookie, "Origin": f"http://127.0.0.1:{page.port}"}
    types = (
        *("application/x-www-form-urlencoded; charset=unknown", "application/x-www-form-urlencoded; charset=utf-16"),
        *("multipart/form-data", "multipart/form-data; boundary=other"),
    )
    replies = [page.request("POST", "/jobs/job/control", form, **own, Content_Type=one) for one in types]
    assert [reply.status for reply in replies] == [400] * 4
    assert all("Content-Security-Policy" in reply.headers for reply in replies)
    assert caplog.records == []


def test_a_compressed_form_is_refused_whenever_its_bytes_arrive(page: Watch, caplog: pytest.LogCaptureFixture) -> None:
    body = f"form={page.access.form_token}".encode()
    for late_bytes in (0, 1, len(body)):
        connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=20)
        connection.putrequest("POST", "/jobs/job/control")
        for name, value in {
            "Cookie": page.cookie,
            "Origin": f"http://127.0.0.1:{page.port}",
            "Content-Length": str(len(body)),
            "Content-Type": "application/x-www-form-urlencoded",
            "Content-Encoding": "gzip",
        }.items():
            connection.putheader(name, value)
        connection.endheaders(body[: len(body) - late_bytes])
        response = connection.getresponse()
        assert (response.status, b"This form is compressed" in response.read()) == (400, True)
        connection.sock.sendall(body[len(body) - late_bytes :])
        # The connection is whole: it takes the next request.
        connection.request("GET", "/", headers={"Cookie": page.cookie})
        assert connection.getresponse().status == 200
        connection.close()
    assert caplog.records == []


def test_only_jobs_of_the_workspace_are_steered_and_followed(page: Watch) -> None:
    for name in ("..%2f..%2fother", "a%00b", "other"):
        assert page.post(f"/jobs/{name}/control", command="pause").status == 404, name
        assert page.get(f"/events?page=/jobs/{name}").status == 404, name


def test_a_stream_has_the_headers_of_a_page_and_a_browser_that_left_frees_its_place(page: Watch) -> None:
    def follow() -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=20)
        connection.request("GET", "/events?page=/schedule", headers={"Cookie": page.cookie})
        return connection

    connections = [follow() for _ in range(MAX_STREAMS + 4)]
    replies = [connection.getresponse() for connection in connections]
    assert sorted(reply.status for reply in replies) == [200] * MAX_STREAMS + [503] * 4
    streams = [reply for reply in replies if reply.status == 200]
    assert {name: streams[0].headers[name] for name in HEADERS} == HEADERS
    assert page.request("HEAD", "/events", Cookie=page.cookie).status == 405
    for opened in (*replies, *connections):
        opened.close()
    # Nothing changes on that page, so that no write can fail.
    status = 503
    while status == 503:
        connection = follow()
        with connection.getresponse() as reply:
            status = reply.status
        connection.close()
    assert status == 200


def test_a_read_only_page_refuses_to_steer(workspace: Workspace, watch: OpenWatch) -> None:
    workspace.csv(1)
    workspace.job()
    page = watch(workspace.folder, is_read_only=True)
    assert page.post("/jobs/job/control", command="pause").status == 403
    assert "read-only" in page.get("/").words()


def test_rows_are_text_and_can_make_the_page_send_nothing(workspace: Workspace, watch: OpenWatch, cli: Any) -> None:
    hostile = "<img src=//other.test/x onerror=alert(1)> [a](javascript:alert(1)) ![b](http://other.test/b.png)"
    workspace.write("rows.csv", f'id,text\n"<b>1</b>","{hostile}"\n')
    cli.run(workspace.job(sink="{parquet: out, columns: [text]}"))
    page = watch(workspace.folder)
    shown = hostile.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("/", "&#x2f;")
    for path in ("/jobs/job", "/jobs/job/rows", "/jobs/job/row?key=%3Cb%3E1%3C%2Fb%3E"):
        reply = page.get(path)
        assert shown in reply.text, path
        assert "<b>1" not in reply.text and "<img src=//" not in reply.text
        assert reply.outside_addresses == []


def test_a_text_that_only_looks_like_a_file_is_text_on_the_page_and_in_the_report(
    workspace: Workspace, watch: OpenWatch, cli: Any
) -> None:
    names = {"long": f"{'x' * 300}.png", "null": "a\0.mp3", "hidden": [".rowmill/state.png"]}
    workspace.write("rows.jsonl", json.dumps({"id": 1, "text": "x", **names}))
    job = workspace.job(source="{jsonl: rows.jsonl, key: id}", sink='{parquet: out, columns: [long, "null", hidden]}')
    cli.run(job)
    (workspace.folder / ".rowmill" / "state.png").write_bytes((DATA / "images/coffee.png").read_bytes())
    assert cli("report", job, "-o", workspace.folder / "page.html") == 0, cli.err
    reply = watch(workspace.folder).get("/jobs/job/row?key=1")
    assert [names["long"] in reply.text, "data:image" in reply.text] == [True, False]


def test_pictures_and_sounds_are_served_by_their_bytes(workspace: Workspace, watch: OpenWatch, cli: Any) -> None:
    for name in ("images/coffee.png", "audio/jfk.flac"):
        workspace.folder.joinpath(Path(name).name).write_bytes((DATA / name).read_bytes())
    workspace.write("page.png", "<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    workspace.folder.parent.joinpath("secret.png").write_bytes((DATA / "images/coffee.png").read_bytes())
    workspace.write("rows.csv", "id,text,a,b,c,d\n1,x,coffee.png,jfk.flac,page.png,../secret.png\n")
    cli.run(workspace.job(sink="{parquet: out, columns: [a, b, c, d]}"))
    (workspace.folder / ".rowmill" / "state.png").write_bytes((DATA / "images/coffee.png").read_bytes())
    page = watch(workspace.folder)
    media = [one for one in page.get("/jobs/job").addresses if "/media?" in one]
    files = ("coffee.png", "coffee.png", "jfk.flac")
    assert media == [f"/jobs/job/media?file={name}" for name in files]
    picture, sound = page.get("/jobs/job/media?file=coffee.png"), page.get("/jobs/job/media?file=jfk.flac")
    assert (picture.status, picture.headers["Content-Type"]) == (200, "image/png")
    assert (sound.status, sound.headers["Content-Type"]) == (200, "audio/flac")
    assert picture.headers["X-Content-Type-Options"] == "nosniff"
    for name in (
        "page.png",
        "../secret.png",
        ".rowmill/state.png",
        "rows.csv",
        "rowmill.yaml",
        "",
        "/etc/passwd",
        "%00",
    ):
        assert page.get(f"/jobs/job/media?file={name}").status == 404, name
