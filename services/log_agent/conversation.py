"""The agent's side of a read: chunks out, answers in, never more than a few unanswered.

A reader that is slow makes `send` wait, and the wait reaches the engine's socket or the file: nothing piles
up here. A reader that is gone, or says nothing, ends the read.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import msgspec

from shared.bus import Bus
from shared.logs import ANSWER_WAIT_S, GO_ON, STOP, UNANSWERED_CHUNKS_MAX, LogChunk

_NO_RESPONDERS = "503"  # the server's own word on the reply subject: nobody listens to the reader's inbox


class Conversation:
    """One read being answered; made with `conversation`."""

    def __init__(self, bus: Bus, reader: str, inbox: str, wait_s: float) -> None:
        self.ended: str | None = None
        self._bus, self._reader, self._inbox, self._wait_s = bus, reader, inbox, wait_s
        self._unanswered = 0
        self._heard = asyncio.Event()

    async def send(self, chunk: LogChunk) -> bool:
        """Send one chunk as soon as the reader has room for it; False when there is no reader any more."""
        while self.ended is None and self._unanswered >= UNANSWERED_CHUNKS_MAX:
            self._heard.clear()
            try:
                await asyncio.wait_for(self._heard.wait(), self._wait_s)
            except TimeoutError:
                self.ended = f"the reader said nothing for {self._wait_s:g} s"
        if self.ended is not None:
            return False
        self._unanswered += 1
        await self._bus.publish(self._reader, msgspec.json.encode(chunk), self._inbox)
        return True

    def hear(self, _subject: str, data: bytes, _reply: str, headers: Mapping[str, str] | None) -> None:
        """Take an answer; anything that is neither word counts as nothing."""
        if headers and headers.get("Status") == _NO_RESPONDERS:
            self.ended = "the reader is gone"
        elif data == STOP:
            self.ended = "the reader has enough"
        elif data == GO_ON:
            self._unanswered = max(self._unanswered - 1, 0)
        self._heard.set()


@asynccontextmanager
async def conversation(bus: Bus, reader: str, wait_s: float = ANSWER_WAIT_S) -> AsyncGenerator[Conversation, None]:
    """Begin to answer a read whose chunks go to the inbox `reader`."""
    inbox = bus.inbox()
    talk = Conversation(bus, reader, inbox, wait_s)
    unsubscribe = await bus.subscribe(inbox, talk.hear)
    try:
        yield talk
    finally:
        await unsubscribe()
