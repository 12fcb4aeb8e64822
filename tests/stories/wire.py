"""A NATS client by hand: a socket and the text protocol, nothing imported but the standard library.

It is what any program in any language could do, so the stories told with it hold for all of them.
"""

import json
import socket
from typing import Any


class Wire:
    """One connection that requests, publishes and reads headers; every wait ends after `within_s`."""

    def __init__(self, port: int, within_s: float = 10.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=within_s)
        self._file = self._socket.makefile("rb")
        assert self._line().startswith("INFO ")
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "lang": "none"}
        self._send(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")
        self._until("PONG")
        self._send(b"SUB INBOX.by.hand.* 1\r\n")
        self._asked = 0
        self._answer_to = ""

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def request(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """Publish with a reply subject; the answer, as JSON."""
        self._asked += 1
        reply = f"INBOX.by.hand.{self._asked}"
        if headers:
            head = b"NATS/1.0\r\n" + b"".join(f"{k}: {v}\r\n".encode() for k, v in headers.items()) + b"\r\n"
            self._send(
                f"HPUB {subject} {reply} {len(head)} {len(head) + len(data)}\r\n".encode() + head + data + b"\r\n"
            )
        else:
            self._send(f"PUB {subject} {reply} {len(data)}\r\n".encode() + data + b"\r\n")
        while True:
            came, body = self._message()
            if came == reply:
                answer: dict[str, Any] = json.loads(body)
                return answer

    def pulled(self, consumer: str, *, ack: bool) -> str:
        """Take one message from a durable consumer of EVENTS, and acknowledge it or not; its subject."""
        self._asked += 1
        reply = f"INBOX.by.hand.{self._asked}"
        self._send(f"PUB $JS.API.CONSUMER.MSG.NEXT.EVENTS.{consumer} {reply} 0\r\n\r\n".encode())
        while True:
            came, _ = self._message()
            if came.startswith("step.dispatched."):
                if ack:
                    self._send(f"PUB {self._answer_to} 4\r\n+ACK\r\n".encode())
                return came

    def _message(self) -> tuple[str, bytes]:
        while True:
            words = self._line().split(" ")
            if words[0] == "PING":
                self._send(b"PONG\r\n")
            elif words[0] in ("MSG", "HMSG"):
                self._answer_to = words[3]
                whole = self._file.read(int(words[-1]) + 2)[:-2]
                return words[1], whole[int(words[-2]) :] if words[0] == "HMSG" else whole

    def _until(self, wanted: str) -> None:
        while (line := self._line()) != wanted:
            assert not line.startswith("-ERR"), line

    def _line(self) -> str:
        line = self._file.readline()
        assert line, "the server closed the connection"
        return line.rstrip(b"\r\n").decode()

    def _send(self, data: bytes) -> None:
        self._socket.sendall(data)
