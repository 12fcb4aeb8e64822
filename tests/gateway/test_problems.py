"""Every refusal is a problem (RFC 9457) that says whose turn it is; nothing hostile gets further than that."""

import asyncio
import gzip
from collections.abc import Awaitable
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web as aioweb

from services.gateway.problems import TYPE_PREFIX
from services.gateway.shell import Shell
from shared.bus import Bus
from shared.plan import GOAL_BYTES_MAX
from shared.streams import last_seq
from tests.gateway.conftest import WITHIN_S, WebStack, problem

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, "payload"),
        (b"check logs", 400, "payload"),
        (b"\xff\xfe", 400, "payload"),
        (b"[]", 400, "payload"),
        (b"[" * 60_000, 400, "payload"),
        (b'{"x":' * 10_000 + b"1" + b"}" * 10_000, 400, "payload"),
        (b"{}", 422, "goal"),
        (b'{"goal":"  "}', 422, "goal"),
        (b'{"goal":7}', 422, "goal"),
        (b'{"goal":"%s"}' % (b"x" * 2_001), 422, "goal"),
        (b'{"tasks":["a.b"]}', 422, "tasks[0]"),
        (b'{"tasks":["noop",3]}', 422, "tasks[1]"),
        (b'{"tasks":["noop"],"directive":"*"}', 422, "directive"),
        (b'{"goal":"x","max_steps":0}', 422, "max_steps"),
        (b'{"goal":"x","time_budget_s":86401}', 422, "time_budget_s"),
        (b'{"goal":"x","token_budget":-1}', 422, "token_budget"),
        (b'{"goal":"x","hosts":[]}', 422, "hosts"),
        (b'{"goal":"x","params":{"a":"%s"}}' % (b"x" * 20_000), 422, "params"),
    ],
)
async def test_a_goal_that_cannot_be_one_is_refused_by_its_field_and_not_published(
    web: aiohttp.ClientSession, bus: Bus, body: bytes, status: int, field: str
) -> None:
    before = await last_seq(bus)
    async with web.post("/api/runs", data=body, headers=JSON) as answer:
        told = await problem(answer, status, "malformed" if status == 400 else "invalid-goal")
    assert told["field"] == field
    assert told["problems"][0] == {"reason": told["detail"], "field": field}
    assert told["instance"] == "/api/runs"
    assert await last_seq(bus) == before


async def test_every_reason_of_a_bad_goal_is_told(web: aiohttp.ClientSession) -> None:
    async with web.post("/api/runs", json={"goal": " ", "max_steps": 0, "token_budget": -1}) as answer:
        told = await problem(answer, 422, "invalid-goal")
    assert [one["field"] for one in told["problems"]] == ["goal", "max_steps", "token_budget"]


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
async def test_a_body_over_the_limit_is_413(web: aiohttp.ClientSession, chunked: bool) -> None:
    async def pieces() -> Any:
        for _ in range(GOAL_BYTES_MAX // 1024 + 2):
            yield b"x" * 1024

    data = pieces() if chunked else b"x" * (GOAL_BYTES_MAX + 1)
    async with web.post("/api/runs", data=data, headers=JSON) as answer:
        await problem(answer, 413, "too-large")


async def test_a_goal_at_the_limit_is_taken(web: aiohttp.ClientSession) -> None:
    body = b'{"tasks":["noop"]}'.ljust(GOAL_BYTES_MAX)
    async with web.post("/api/runs", data=body, headers=JSON) as answer:
        assert answer.status == 202


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain", "Origin": "http://localhost", "Host": "localhost"},
        {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"},
        {"Content-Type": "multipart/form-data; boundary=x", "Sec-Fetch-Site": "none"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
    ids=["a page's text", "a form", "multipart", "utf-16", "gzip"],
)
async def test_what_a_form_can_send_and_what_is_not_plain_is_not_read(
    web: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    body = gzip.compress(b'{"tasks":["noop"]}') if "Content-Encoding" in headers else b'{"tasks":["noop"]}'
    async with web.post("/api/runs", data=body, headers=headers) as answer:
        await problem(answer, 415, "media-type")


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "application/json; charset=UTF-8"])
async def test_a_program_need_not_name_the_type(web: aiohttp.ClientSession, kind: str) -> None:
    """`curl -d '{…}'` calls its body a form."""
    async with web.post("/api/runs", data=b'{"tasks":["noop"]}', headers={"Content-Type": kind}) as answer:
        assert answer.status == 202


async def goals(bus: Bus) -> int:
    """How many goals the stream holds; runs of other tests may still be going on."""
    state = (await bus.api("STREAM.INFO.EVENTS", {"subjects_filter": "goal.submitted"}))["state"]
    return sum((state.get("subjects") or {}).values())


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403, "refused"),
        ({"Sec-Fetch-Site": "same-site"}, 403, "refused"),
        ({"Origin": "http://evil.example"}, 403, "refused"),
        ({"Origin": "null"}, 403, "refused"),
        ({"Origin": "http://\udcff"}, 403, "refused"),
        ({"Sec-Fetch-Site": "\udcff"}, 403, "refused"),
        ({"Origin": "http://127.0.0.1:1"}, 403, "refused"),
        ({"Host": "evil.example"}, 421, "misdirected"),
        ({"Host": "127.0.0.1.evil.example"}, 421, "misdirected"),
        ({"Host": "10.0.0.1:9595"}, 421, "misdirected"),
        ({"Host": "user@127.0.0.1"}, 400, "malformed"),
        ({"Host": "remit.example", "Origin": "http://evil.example"}, 403, "refused"),
    ],
)
async def test_another_sites_page_cannot_start_a_run(
    web: aiohttp.ClientSession, bus: Bus, headers: dict[str, str], status: int, kind: str
) -> None:
    before = await goals(bus)
    async with web.post("/api/runs", json={"tasks": ["noop"]}, headers=headers) as answer:
        await problem(answer, status, kind)
    assert await goals(bus) == before


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost"},
        {"Host": "LOCALHOST:80"},
        {"Host": "[::1]:9595"},
        {"Host": "remit.example:9595"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Host": "localhost:7", "Origin": "http://localhost:7", "Sec-Fetch-Site": "same-origin"},
    ],
)
async def test_a_page_of_its_own_can(web: aiohttp.ClientSession, headers: dict[str, str]) -> None:
    async with web.post("/api/runs", json={"tasks": ["noop"]}, headers=headers) as answer:
        assert answer.status == 202


async def test_a_rebound_name_can_read_nothing(web: aiohttp.ClientSession) -> None:
    for path in ("/api/runs", "/api/runs/1", "/livez", "/nowhere"):
        async with web.get(path, headers={"Host": "evil.example"}) as answer:
            await problem(answer, 421, "misdirected")


async def test_nothing_is_shared_with_other_origins(web: aiohttp.ClientSession) -> None:
    async with web.get("/api/tokens", headers={"Origin": "http://evil.example"}) as answer:
        assert answer.status == 200
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/api/runs/0", 400, "run"),
        ("/api/runs/-1", 400, "run"),
        ("/api/runs/x", 400, "run"),
        ("/api/runs/%D9%A1", 400, "run"),
        ("/api/runs/%2e%2e%2f", 400, "run"),
        ("/api/runs/99999999999999999999", 400, "run"),
        ("/api/runs/999999999999999999", 404, "run"),
        ("/api/runs/999999999/plan", 404, "run"),
        ("/api/runs/999999999/report", 404, "run"),
        ("/api/runs/999999999/events", 404, "run"),
        ("/api/runs/999999999/artifacts", 404, "run"),
        ("/api/runs/999999999/artifacts/x", 404, "run"),
        ("/api/runs?limit=0", 400, "limit"),
        ("/api/runs?limit=1001", 400, "limit"),
        ("/api/runs?limit=ten", 400, "limit"),
        ("/api/runs?limit=1&limit=2", 400, "limit"),
        ("/api/runs?before=0", 400, "before"),
        ("/api/runs?status=done", 400, "status"),
        ("/api/runs?status=%27%3B%20drop%20table%20runs", 400, "status"),
        ("/api/tokens?limit=-5", 400, "limit"),
    ],
)
async def test_a_path_or_query_that_names_nothing_says_which_part(
    web: aiohttp.ClientSession, path: str, status: int, field: str
) -> None:
    async with web.get(path) as answer:
        told = await problem(answer, status, "malformed" if status == 400 else "not-found")
    assert told["field"] == field


async def test_a_message_that_is_no_goal_is_no_run(web: aiohttp.ClientSession, bus: Bus) -> None:
    ack = msgspec.json.decode(await bus.request("run.boasted.1", b"{}"))
    async with web.get(f"/api/runs/{ack['seq']}") as answer:
        assert "no goal" in (await problem(answer, 404, "not-found"))["detail"]


@pytest.mark.parametrize(
    "path", ["/", "/api", "/api/runs/", "/api/runs/1/nothing", "/livez/x", "/%00", "/" + "x" * 5000]
)
async def test_an_unknown_path_is_404(web: aiohttp.ClientSession, path: str) -> None:
    async with web.get(path) as answer:
        told = await problem(answer, 404, "not-found")
    assert len(told["instance"]) <= 300


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/api/runs", "GET, HEAD, POST"),
        ("PUT", "/api/runs/1", "GET, HEAD"),
        ("POST", "/api/tokens", "GET, HEAD"),
        ("OPTIONS", "/api/runs", "GET, HEAD, POST"),
        ("TRACE", "/livez", "GET, HEAD"),
        ("HEAD", "/api/runs/1/events", "GET"),  # a stream's length is not known, and its events would follow
    ],
)
async def test_a_wrong_method_is_405_and_says_which_are_right(
    web: aiohttp.ClientSession, method: str, path: str, allow: str
) -> None:
    async with web.request(method, path, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == allow
        if method != "HEAD":
            await problem(answer, 405, "method-not-allowed")


async def raw(stack: WebStack, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """One answer to bytes that no client would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    async with asyncio.timeout(WITHIN_S):
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    writer.close()
    return int(head[0].split()[1]), headers, body


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
        (b"GET http://evil.example/livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET //evil.example/livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", 400),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"POST /api/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /api/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
         b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nExpect: a-miracle\r\n\r\n", 417),
        (b"POST /api/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
         b"Content-Length: 99999999\r\n\r\n", 413),
    ],
    ids=["no http", "version", "no host", "two hosts", "absolute", "two slashes", "header", "target", "length",
         "chunk", "expect", "announced"],
)  # fmt: skip
async def test_what_is_no_request_is_told_so_in_the_same_words(
    stack: WebStack, request_bytes: bytes, status: int
) -> None:
    code, headers, body = await raw(stack, request_bytes)
    assert code == status, body
    assert headers["content-type"] == "application/problem+json"
    told = msgspec.json.decode(body)
    assert told["status"] == status
    assert told["type"].startswith(TYPE_PREFIX)


async def test_a_bug_is_500_without_its_text() -> None:
    """A handler that fails by itself: the one test that needs a handler of its own, behind the real shell."""

    async def fails(_request: aioweb.Request) -> aioweb.Response:
        raise KeyError("hunter2")

    async def fails_midway(request: aioweb.Request) -> aioweb.StreamResponse:
        begun = aioweb.StreamResponse()
        begun.content_length = 10
        await begun.prepare(request)
        await begun.write(b"half")
        raise KeyError("hunter2")

    app = aioweb.Application()
    app.add_routes([aioweb.get("/api/bug", fails), aioweb.get("/api/half", fails_midway)])
    shell = Shell(app, frozenset())
    port = await shell.start("127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            async with session.get("/api/bug") as answer:
                text = await answer.text()
                assert answer.status == 500
                assert answer.headers["Content-Type"] == "application/problem+json"
                assert "hunter2" not in text
                assert msgspec.json.decode(text)["type"] == "urn:remit:problem:internal"
            with pytest.raises(aiohttp.ClientError):
                async with session.get("/api/half") as answer:
                    await answer.read()
    finally:
        await shell.stop()


async def test_a_goal_that_somebody_else_answers_may_have_been_stored(web: aiohttp.ClientSession, bus: Bus) -> None:
    """Whoever is told that it was not would send it again, and start the run twice."""

    def answer(_subject: str, _data: bytes, reply: str, _headers: object) -> Awaitable[None]:
        return bus.publish(reply, b"thank you")

    stop = await bus.subscribe("goal.submitted", answer)
    held = (await bus.api("STREAM.INFO.EVENTS"))["config"]
    await bus.api("STREAM.UPDATE.EVENTS", {**held, "no_ack": True})  # the stream's own answer would come first
    try:
        async with web.post("/api/runs", json={"goal": "check logs"}) as response:
            assert (await problem(response, 503, "unavailable"))["outcome"] == "unknown"
    finally:
        await bus.api("STREAM.UPDATE.EVENTS", held)
        await stop()
