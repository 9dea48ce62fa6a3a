"""An engine that answers at once: what the proxy adds is all there is. ``python instant.py PORT``.

/v1/completions: 300 bytes of JSON. /v1/chat/completions: a stream of 200 events. Everything else: 200.
"""

from __future__ import annotations

import asyncio
import json
import sys

PLAIN = json.dumps({"id": "cmpl-1", "object": "text_completion", "choices": [{"text": "x" * 200}]}).encode()
EVENT = b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" llama"}}]}\n\n'
EVENTS = 200


class Instant(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.seen = transport, b""

    def data_received(self, data: bytes) -> None:
        self.seen += data
        while b"\r\n\r\n" in self.seen:
            head, _, rest = self.seen.partition(b"\r\n\r\n")
            lines = (line.lower().partition(b":") for line in head.splitlines())
            length = next((int(value) for name, _, value in lines if name == b"content-length"), 0)
            if len(rest) < length:
                return
            self.seen = rest[length:]
            self.answer(head)

    def answer(self, head: bytes) -> None:
        if b" /v1/chat/completions " in head.partition(b"\r\n")[0]:
            chunks = [EVENT] * EVENTS + [b"data: [DONE]\n\n"]
            start = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            self.transport.write(start)
            for chunk in chunks:
                self.transport.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.transport.write(b"0\r\n\r\n")
            return
        start = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(PLAIN)
        self.transport.write(start + PLAIN)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
