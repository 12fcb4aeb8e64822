"""A run's artifacts: only what a step of the run announced is served, and only when its bytes are those announced.

Theory of operation. Name and type of an artifact were chosen by a worker, which may be anybody's: the name is looked
up among those announced and used for nothing else, and the bytes are handed out as an attachment in a sandbox, so
that HTML among them cannot act as a page of this gateway. The object is written to a file first and hashed: a part
of it, or other bytes under the same name, are never sent as the artifact.
"""

import asyncio
import contextlib
import hashlib
import re
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import msgspec
from aiohttp import web

from services.gateway.asked import answered, run_of
from services.gateway.problems import Problem
from services.gateway.views import announced, run_view
from shared.bus import Bus
from shared.errors import NotFound, Unavailable
from shared.events import Artifact
from shared.run import Run
from shared.story import read_story
from shared.subjects import ARTIFACTS_BUCKET, artifact

REPORT = "report.md"
DOWNLOADS_MAX = 4  # at a time: each is a file on disk
BLOCK_BYTES = 256 * 1024
ROOM_S = 20.0  # who waits longer for the others' downloads is told to come again
WRITE_S = 120.0  # a block may wait for megabytes that the kernel holds: at 40 kB/s that is a minute

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,60}/[A-Za-z0-9!#$&^_.+-]{1,60}(; ?charset=[A-Za-z0-9-]{1,20})?")
_FILENAME_ODD = re.compile(r"[^A-Za-z0-9._-]")


class Artifacts:
    """The handlers of `/api/runs/{run}/artifacts` and `/api/runs/{run}/report`."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._room = asyncio.Semaphore(DOWNLOADS_MAX)

    async def list(self, request: web.Request) -> web.Response:
        """`GET /api/runs/{run}/artifacts`"""
        view = run_view(await read_story(self._bus, run_of(request)))
        rows = [{**msgspec.to_builtins(one), "url": _url(view.run, one.name)} for one in view.artifacts]
        return answered({"run": view.run, "status": view.status, "artifacts": rows})

    async def one(self, request: web.Request) -> web.StreamResponse:
        """`GET /api/runs/{run}/artifacts/{name}`"""
        run = (await read_story(self._bus, run_of(request))).run
        return await self._send(request, run, request.match_info["name"], "attachment")

    async def report(self, request: web.Request) -> web.StreamResponse:
        """`GET /api/runs/{run}/report`: what the run wrote for people."""
        run = (await read_story(self._bus, run_of(request))).run
        return await self._send(request, run, REPORT, "inline")

    async def _send(self, request: web.Request, run: Run, name: str, disposition: str) -> web.StreamResponse:
        wanted = [one for _, one in announced(run) if one.name == name]
        if not wanted:
            raise NotFound(_missing(run, name))
        newest = wanted[-1]
        if f'"{newest.sha256}"' in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=_headers(newest, disposition))
        if request.method == "HEAD":
            response = web.StreamResponse(headers=_headers(newest, disposition))
            response.content_length = newest.size_bytes
            await response.prepare(request)
            return response
        async with self._in_turn():
            found, file = await self._find(run.id, name, wanted)
            with file:
                response = web.StreamResponse(headers=_headers(found, disposition))
                response.content_length = file.seek(0, 2)
                file.seek(0)
                await response.prepare(request)
                while block := await asyncio.to_thread(file.read, BLOCK_BYTES):
                    async with asyncio.timeout(WRITE_S):
                        await response.write(block)
                return response

    @contextlib.asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        try:
            await asyncio.wait_for(self._room.acquire(), ROOM_S)
        except TimeoutError as error:
            raise Unavailable(f"{DOWNLOADS_MAX} downloads are under way, and none has ended in {ROOM_S:g} s") from error
        try:
            yield
        finally:
            self._room.release()

    async def _find(self, run: int, name: str, wanted: Sequence[Artifact]) -> tuple[Artifact, BinaryIO]:
        """The newest of those announced whose bytes there are. A step that was reused left them with its own run."""
        for holder in dict.fromkeys(one.from_run or run for one in reversed(wanted)):
            file, sha256 = await self._fetch(artifact(holder, name))
            # Two steps may have announced the same name: the store holds what was put last.
            found = next((one for one in reversed(wanted) if one.sha256.lower() == sha256), None)
            if found is not None:
                return found, file
            file.close()
        raise Problem(502, f"{name} in the store is not what run {run} announced", sha256=wanted[-1].sha256)

    async def _fetch(self, name: str) -> tuple[BinaryIO, str]:
        """The object as an open file that has no name any more, and its sha256 in hex."""
        with tempfile.TemporaryDirectory(prefix="remit-artifact-") as folder:
            path = Path(folder) / "bytes"
            await self._bus.object_get(ARTIFACTS_BUCKET, name, path)
            file = path.open("rb")
        try:
            return file, (await asyncio.to_thread(hashlib.file_digest, file, "sha256")).hexdigest()
        except BaseException:
            file.close()
            raise


def _missing(run: Run, name: str) -> str:
    """Why there is no such artifact, for a person."""
    others = ", ".join(sorted({one.name for _, one in announced(run)})[:20])
    if run.status == "rejected":
        return f"run {run.id} was rejected and wrote nothing: {run.reason}"
    so_far = f"it wrote {others}" if others else "it wrote no artifact"
    if not run.ended:
        return f"run {run.id} has no {name} yet: it is {run.status}, and so far {so_far}"
    return f"run {run.id} has no {name}: it ended as {run.status}, and {so_far}"


def _headers(one: Artifact, disposition: str) -> dict[str, str]:
    media_type = one.media_type if _MEDIA_TYPE.fullmatch(one.media_type) else "application/octet-stream"
    if media_type.startswith("text/") and "charset" not in media_type:
        media_type += "; charset=utf-8"
    plain = _FILENAME_ODD.sub("_", one.name.rsplit("/", 1)[-1])
    full = quote(one.name.rsplit("/", 1)[-1], safe="")
    return {
        "Content-Type": media_type,
        "Content-Disposition": f"{disposition}; filename=\"{plain}\"; filename*=UTF-8''{full}",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "ETag": f'"{_FILENAME_ODD.sub("_", one.sha256)}"',
        "Cache-Control": "private, no-cache",
    }


def _url(run: int, name: str) -> str:
    return f"/api/runs/{run}/artifacts/{quote(name)}"
