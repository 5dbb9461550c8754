"""What tools/app.py lets in: requests of its own page, of a size that a scene has, whose answers are read."""

import math
import time
from urllib.parse import parse_qs

LARGEST = 4_000_000  # bytes of a request: a million characters, each of which may take four
PATIENCE = 5  # seconds for which what is written waits for a reader
HEADERS = [(b"x-frame-options", b"DENY"), (b"content-security-policy", b"frame-ancestors 'none'")]


class Readers:
    """Which visitors read what is written for them."""

    def __init__(self):
        self.waiting = {}  # visitor: since when the connection takes nothing; infinity where it does

    def gone(self, visitor: str, began: float) -> bool:
        """Whether nobody has read for a while; began: when the writing did."""
        return time.monotonic() - self.waiting.get(visitor, began) > PATIENCE


class Gate:
    """ASGI middleware (asgi.readthedocs.io): refuses other sites and long requests, and notes who reads."""

    def __init__(self, app, readers: Readers):
        self.app, self.readers = app, readers

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        origin, length = headers.get(b"origin"), headers.get(b"content-length", b"0")
        if origin not in (None, b"http://" + headers.get(b"host", b"")):
            return await refuse(send, 403)
        if not length.isdigit() or int(length) > LARGEST:
            return await refuse(send, 413)
        visitor = None
        if scope["path"].endswith("/queue/data"):
            (visitor,) = parse_qs(scope["query_string"].decode()).get("session_hash", [""])[:1]
        left = LARGEST

        async def limited():
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            return message if left >= 0 else {"type": "http.disconnect"}

        async def sent(message):
            if message["type"] == "http.response.start":
                message = message | dict(headers=[*message.get("headers", []), *HEADERS])
            if visitor:
                self.readers.waiting[visitor] = time.monotonic()
            await send(message)  # which waits where nobody reads
            if visitor:
                self.readers.waiting[visitor] = math.inf

        try:
            await self.app(scope, limited, sent)
        finally:
            self.readers.waiting.pop(visitor, None)


async def refuse(send, status: int):
    await send(dict(type="http.response.start", status=status, headers=HEADERS))
    await send(dict(type="http.response.body"))
