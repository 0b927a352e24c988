"""What a request must pass before it is read: bearer token, a path without control characters, a limit on its body.

Plain ASGI, around the app, so that a refusal costs next to nothing.
"""

import hmac
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

_OPEN = ("/", "/healthz", "/readyz")  # asked for by those who have no token yet
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def json_bytes(content: Any) -> bytes:
  """ASCII JSON, so that any text can be sent, lone surrogates too; NaN is refused."""
  return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class Guard:
  """ASGI middleware.

  Args:
    app: what is guarded.
    token: that requests must carry; empty: none.
    most: largest body, bytes; counted while it is read, whatever its header says.
  """

  def __init__(self, app: Callable, token: str, most: int):
    self._app, self._expected, self._most = app, f"Bearer {token}".encode() if token else None, most
    self._too_large = f"the body is larger than {most // 1024} KiB"

  async def __call__(self, scope: Mapping[str, Any], receive: Callable, send: Callable) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    headers = dict(scope["headers"])
    given = headers.get(b"authorization", b"")
    if self._expected and scope["path"] not in _OPEN and not hmac.compare_digest(given, self._expected):
      await _refuse(send, 401, "a bearer token is needed", (b"www-authenticate", b"Bearer"))
      return
    if _CONTROL.search(scope["path"]):  # the router would take an id that ends in a line break for the one without it
      await _refuse(send, 422, "a control character in the path is not allowed")
      return
    if _is_more(headers.get(b"content-length", b"0"), self._most):
      await _refuse(send, 413, self._too_large, (b"connection", b"close"))  # the rest of the body is not read
      return
    count = 0

    async def counted_receive():
      nonlocal count
      message = await receive()
      count += len(message.get("body", b""))
      if count > self._most:
        from starlette.exceptions import HTTPException  # the one exception that FastAPI lets out of reading a body

        raise HTTPException(413, self._too_large, headers={"connection": "close"})
      return message

    await self._app(scope, counted_receive, send)


def _is_more(length: bytes, most: int) -> bool:
  digits = length.strip().lstrip(b"0")
  return digits.isdigit() and (len(digits) > 18 or int(digits) > most)


async def _refuse(send: Callable, status: int, words: str, *more: tuple[bytes, bytes]) -> None:
  body = json_bytes({"error": words})
  headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
  await send({"type": "http.response.start", "status": status, "headers": headers})
  await send({"type": "http.response.body", "body": body})
