"""Artifacts over HTTP: what a worker announced, byte for byte, and nothing else that lies in the store."""

import contextlib
import hashlib
import re
from urllib.parse import unquote

import aiohttp
import msgspec
import pytest

from services.gateway import artifacts as downloads
from shared.bus import Bus, connect
from shared.errors import Unavailable
from shared.events import Artifact, encode
from shared.plan import Reused
from shared.subjects import ARTIFACTS_BUCKET, artifact, goal_submitted, plan_created
from tests import controls
from tests.gateway.conftest import Outsider, WebStack, ended, problem, submitted

REPORT = b"# Report\n\nAll is well \xe2\x9c\x93\n"


async def made(web: aiohttp.ClientSession, outsider: Outsider, *artifacts: tuple[str, bytes, str]) -> int:
    """A run that left these artifacts."""
    outsider.artifacts = list(artifacts)
    run = await submitted(web, {"tasks": [outsider.task]})
    assert (await ended(web, run))["status"] == "succeeded"
    return run


async def test_an_artifact_comes_as_it_was_put(web: aiohttp.ClientSession, outsider: Outsider) -> None:
    data = bytes(range(256)) * 8_192  # 2 MiB: many chunks in the store, many blocks on the wire
    run = await made(web, outsider, ("findings.json", data, "application/json"))
    async with web.get(f"/api/runs/{run}/artifacts") as answer:
        listed = (await answer.json())["artifacts"]
    digest = hashlib.sha256(data).hexdigest()
    assert listed == [
        {
            "name": "findings.json", "step": "elsewhere", "sha256": digest, "size_bytes": len(data),
            "media_type": "application/json", "from_run": None, "url": f"/api/runs/{run}/artifacts/findings.json",
        }
    ]  # fmt: skip
    async with web.get(listed[0]["url"]) as answer:
        assert answer.status == 200
        assert await answer.read() == data
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Content-Length"] == str(len(data))
        assert answer.headers["ETag"] == f'"{digest}"'
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Content-Disposition"].startswith('attachment; filename="findings.json"')


async def test_who_has_it_is_not_sent_it_again(web: aiohttp.ClientSession, outsider: Outsider) -> None:
    run = await made(web, outsider, ("a.txt", b"one", "text/plain"))
    url = f"/api/runs/{run}/artifacts/a.txt"
    async with web.get(url) as answer:
        tag = answer.headers["ETag"]
    async with web.get(url, headers={"If-None-Match": f'"x", {tag}'}) as answer:
        assert (answer.status, await answer.read(), answer.headers["ETag"]) == (304, b"", tag)
    async with web.get(url, headers={"If-None-Match": '"x"'}) as answer:
        assert answer.status == 200
    async with web.head(url) as answer:
        assert (answer.status, answer.headers["Content-Length"], answer.headers["ETag"]) == (200, "3", tag)


async def test_the_report_is_markdown_for_people(web: aiohttp.ClientSession, outsider: Outsider) -> None:
    run = await made(web, outsider, ("report.md", REPORT, "text/markdown"))
    async with web.get(f"/api/runs/{run}/report") as answer:
        assert answer.headers["Content-Type"] == "text/markdown; charset=utf-8"
        assert await answer.read() == REPORT


async def test_a_run_without_a_report_says_what_it_has(web: aiohttp.ClientSession, outsider: Outsider) -> None:
    run = await made(web, outsider, ("gpu_report.json", b"{}", "application/json"))
    async with web.get(f"/api/runs/{run}/report") as answer:
        told = await problem(answer, 404, "not-found")
    assert told["detail"] == f"run {run} has no report.md: it ended as succeeded, and it wrote gpu_report.json"


async def test_a_run_that_goes_on_has_no_report_yet(web: aiohttp.ClientSession, outsider: Outsider) -> None:
    outsider.gate.clear()
    run = await submitted(web, {"tasks": ["elsewhere"]})
    async with web.get(f"/api/runs/{run}/report") as answer:
        assert "yet" in (await problem(answer, 404, "not-found"))["detail"]
    outsider.gate.set()
    await ended(web, run)


@pytest.mark.parametrize(
    "name", ["été 100%.md", 'a"b\\c.txt', "sub/folder/x.json", "a b;c=d.txt", "?x=1#y", "日本.md", "%2e%2e%2fx"]
)
async def test_a_name_can_be_any_plain_one(web: aiohttp.ClientSession, outsider: Outsider, name: str) -> None:
    run = await made(web, outsider, (name, b"x", "text/plain"))
    async with web.get(f"/api/runs/{run}/artifacts") as answer:
        listed = (await answer.json())["artifacts"]
    assert listed[0]["name"] == name
    async with web.get(aiohttp.client.URL(listed[0]["url"], encoded=True)) as answer:
        assert (answer.status, await answer.read()) == (200, b"x")
        plain, full = answer.headers["Content-Disposition"].removeprefix("attachment; ").split("; ")
        assert re.fullmatch(r'filename="[A-Za-z0-9._-]+"', plain)
        assert unquote(full.removeprefix("filename*=UTF-8''")) == name.rsplit("/", 1)[-1]


@pytest.mark.parametrize(
    "name", ["../run_1/report.md", "..", "a/../b", "/etc/passwd", "", "a\r\nSet-Cookie: x=1", "a\x00b", "x" * 201]
)
async def test_a_name_that_is_no_plain_path_is_not_served(
    web: aiohttp.ClientSession, outsider: Outsider, name: str
) -> None:
    outsider.announce = [Artifact(name=name, sha256="0" * 64, size_bytes=1)]
    run = await made(web, outsider)
    async with web.get(f"/api/runs/{run}/artifacts") as answer:
        assert (await answer.json())["artifacts"] == []
    async with web.get(f"/api/runs/{run}") as answer:
        assert answer.status == 200


async def test_only_what_the_run_announced_can_be_had(web: aiohttp.ClientSession, outsider: Outsider, bus: Bus) -> None:
    other = await made(web, outsider, ("secret.txt", b"another run's", "text/plain"))
    run = await made(web, outsider, ("mine.txt", b"mine", "text/plain"))
    await bus.object_put(ARTIFACTS_BUCKET, artifact(run, "unannounced.txt"), b"nobody said so")
    for path in ("unannounced.txt", f"..%2Frun_{other}%2Fsecret.txt", "secret.txt", f"run_{run}%2Fmine.txt", "mine.tx"):
        url = aiohttp.client.URL(f"/api/runs/{run}/artifacts/{path}", encoded=True)
        async with web.get(url) as answer:
            await problem(answer, 404, "not-found")


async def test_other_bytes_under_the_name_are_not_served(
    web: aiohttp.ClientSession, outsider: Outsider, bus: Bus
) -> None:
    run = await made(web, outsider, ("a.txt", b"announced", "text/plain"))
    await bus.object_put(ARTIFACTS_BUCKET, artifact(run, "a.txt"), b"exchanged")
    async with web.get(f"/api/runs/{run}/artifacts/a.txt") as answer:
        told = await problem(answer, 502, "damaged")
    assert told["sha256"] == hashlib.sha256(b"announced").hexdigest()


async def test_what_was_announced_and_is_not_in_the_store_is_404(
    web: aiohttp.ClientSession, outsider: Outsider
) -> None:
    outsider.announce = [Artifact(name="ghost.txt", sha256="0" * 64, size_bytes=1)]
    run = await made(web, outsider)
    async with web.get(f"/api/runs/{run}/artifacts/ghost.txt") as answer:
        await problem(answer, 404, "not-found")


@pytest.mark.parametrize(
    ("announced", "served"),
    [
        ("text/html", "text/html; charset=utf-8"),
        ("text/plain; charset=latin-1", "text/plain; charset=latin-1"),
        ("text/plain\r\nSet-Cookie: x=1", "application/octet-stream"),
        ("nonsense", "application/octet-stream"),
        ("", "application/octet-stream"),
        ("image/svg+xml", "image/svg+xml"),
    ],
)
async def test_a_media_type_can_smuggle_nothing(
    web: aiohttp.ClientSession, outsider: Outsider, announced: str, served: str
) -> None:
    run = await made(web, outsider, ("page", b"<script>alert(1)</script>", announced))
    async with web.get(f"/api/runs/{run}/artifacts/page") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == served
        assert "Set-Cookie" not in answer.headers
        assert answer.headers["Content-Disposition"].startswith("attachment")
        assert answer.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"


async def test_what_was_reused_comes_from_the_run_that_left_it(alone: WebStack) -> None:
    """The announcement names that run; bytes of the same name under the new one are not taken for it."""
    bus = await connect(alone.url, "gateway-test")
    first, again = [msgspec.json.decode(await bus.request(goal_submitted(), b"{}"))["seq"] for _ in range(2)]
    sha256, size = await bus.object_put(ARTIFACTS_BUCKET, artifact(first, "report.md"), REPORT)
    await bus.object_put(ARTIFACTS_BUCKET, artifact(again, "report.md"), b"another")
    kept = Artifact(name="report.md", sha256=sha256, size_bytes=size, media_type="text/markdown", from_run=first)
    reused = {"a": Reused(outputs={"n": 1}, artifacts=[kept], host="tower")}
    plan = controls.plan(controls.step("a"), controls.step("b"), retry_of=first, from_step="b", reused=reused)
    await bus.request(plan_created(again), encode(plan))
    async with aiohttp.ClientSession(alone.web) as web:
        async with web.get(f"/api/runs/{again}") as answer:
            view = await answer.json()
        assert (view["retry_of"], [step["reused_from"] for step in view["steps"]]) == (first, [first, None])
        assert [(one["name"], one["from_run"]) for one in view["artifacts"]] == [("report.md", first)]
        async with web.get(f"/api/runs/{again}/report") as answer:
            assert (answer.status, await answer.read()) == (200, REPORT)
    await bus.close()


async def test_who_waits_for_the_others_downloads_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And has its turn when one of them has ended."""
    monkeypatch.setattr(downloads, "ROOM_S", 0.05)
    handlers = downloads.Artifacts(None)  # type: ignore[arg-type]  # nothing is fetched here
    async with contextlib.AsyncExitStack() as others:
        for _ in range(downloads.DOWNLOADS_MAX):
            await others.enter_async_context(handlers._in_turn())
        with pytest.raises(Unavailable, match="4 downloads are under way"):
            async with handlers._in_turn():
                pass
    async with handlers._in_turn():
        pass
