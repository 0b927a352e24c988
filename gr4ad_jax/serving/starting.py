"""Answers from the first moment of a start: that the process lives, and what it is waiting for.

The port is bound, and asked, long before every search is compiled. Until the app is there, /healthz
says that the process lives and everything else gets 503 with Retry-After.
"""

from collections.abc import Callable, Mapping
from typing import Any

from gr4ad_jax.serving.guard import json_bytes


class Gateway:
  """ASGI app that stands in until the real one is there.

  Args:
    address: of the server, to be told when it can serve.

  Attributes:
    app: the real one; None while the run is opened.
    doing: what is waited for, in words.
  """

  def __init__(self, address: str = ""):
    self.address = address
    self.app: Callable | None = None
    self.doing = "opening the run"

  async def __call__(self, scope: Mapping[str, Any], receive: Callable, send: Callable) -> None:
    # From the first moment on which the app is there, everything goes to it.
    if self.app is not None:
      await self.app(scope, receive, send)
    elif scope["type"] == "http":
      alive = scope["path"] == "/healthz"
      content = {"status": "ok"} if alive else {"error": f"starting: {self.doing}"}
      body = json_bytes(content)
      headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
      ]
      if not alive:
        headers.append((b"retry-after", b"5"))
      await send(
        {"type": "http.response.start", "status": 200 if alive else 503, "headers": headers}
      )
      await send({"type": "http.response.body", "body": body})

  def compiled(self, done: int, wanted: int, seconds: float) -> None:
    """Hears of the compilation, as `Searcher.prepare` tells it."""
    self.doing = f"compiled {done} of {wanted} searches, {seconds:.0f} s"
