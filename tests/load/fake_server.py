"""A server with the endpoints that a load needs: one worker, a fixed time a search, refusal of what
would wait long.

python fake_server.py --workdir=ANY --port=0 [--tabs=false]
"""

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable

SEARCH, MOST_WAIT = 0.004, 0.04  # seconds; without TABS a search takes twice that
Handler = Callable[[str, str, bytes], Awaitable[tuple[int, dict[str, str], bytes]]]


class Busy:
  """One worker's time."""

  def __init__(self, search: float, width: int):
    self.search, self.width, self.free = search, width, 0.0

  async def __call__(
    self, method: str, path: str, body: bytes
  ) -> tuple[int, dict[str, str], bytes]:
    """An answer, when the worker has come to it."""
    if path.startswith("/v1/users"):
      return 200, {}, json.dumps({"users": [f"u{n}" for n in range(20)]}).encode()
    if path == "/v1/stats":
      return 200, {}, b'{"target_ms": 40.0}'
    assert method == "POST" and json.loads(body)["user"].startswith("u")
    now = asyncio.get_running_loop().time()
    if self.free - now > MOST_WAIT:
      return 503, {"Retry-After": "1"}, b'{"error": "too much load"}'
    self.free = max(self.free, now) + self.search
    await asyncio.sleep(self.free - now)
    return 200, {}, json.dumps({"source": "model", "beams": [8, self.width], "ads": []}).encode()


async def start(handler: Handler, keep: bool = True) -> asyncio.Server:
  """Listens on a free port of 127.0.0.1; where `keep` is false, each connection is closed after
  its first answer.
  """

  async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
      while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        method, path, _ = head.split(" ", 2)
        status, headers, body = await handler(method, path, await reader.readexactly(length))
        lines = [
          f"HTTP/1.1 {status} Any",
          f"Content-Length: {len(body)}",
          *(f"{k}: {v}" for k, v in headers.items()),
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        if not keep:
          break
    except (EOFError, OSError):
      pass
    finally:
      writer.close()

  return await asyncio.start_server(serve, "127.0.0.1", 0)


def address_of(server: asyncio.Server) -> str:
  """As http://127.0.0.1:8080."""
  return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def until_sigterm(answer: Handler) -> None:
  """Serves until SIGTERM, and says where, as the real server does."""
  server = await start(answer)
  end = asyncio.Event()
  asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
  print(f"serving on {address_of(server)}/", flush=True)
  await end.wait()


if __name__ == "__main__":
  fixed = "--tabs=false" in sys.argv
  asyncio.run(until_sigterm(Busy(SEARCH * (1 + fixed), 128 if fixed else 64)))
