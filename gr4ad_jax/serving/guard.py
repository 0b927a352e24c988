"""What a request must pass before it is read: host, origin, token, path, and the limit on its body.

A local address is no password. A page of another site can make a browser send requests to it, under
a host name of its own that it has pointed here (DNS rebinding). So the host must be one that is
expected, and what changes state must not come from a page of another origin. Plain ASGI, around the
app, so that a refusal costs next to nothing.
"""

import hmac
import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

_OPEN = ("/", "/healthz", "/readyz")  # asked for by those who have no token yet
# Asked for under whatever address the prober knows. They tell nothing.
_PROBES = ("/healthz", "/readyz")
_READING = ("GET", "HEAD", "OPTIONS")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def host_name(host: str) -> str:
  """The name in a Host header or a URL's authority, lower case, without its port: `[::1]:8080`
  -> `::1`.
  """
  name = host.strip().lower()
  # An IPv6 address stands in brackets, since it has colons of its own.
  if name.startswith("["):
    return name[1:].partition("]")[0]
  return name.partition(":")[0]


def json_bytes(content: Any) -> bytes:
  """ASCII JSON, so that any text can be sent, lone surrogates too; NaN is refused."""
  return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class Guard:
  """ASGI middleware.

  Args:
    app: what is guarded.
    token: that requests must carry; empty: none.
    most: largest body, bytes; counted while it is read, whatever its header says.
    hosts: names that a request's Host may have; empty: any, for a server that asks for a token.
  """

  def __init__(self, app: Callable, token: str, most: int, hosts: Collection[str] = LOOPBACK):
    self._app = app
    self._expected = f"Bearer {token}".encode() if token else None
    self._most = most
    self._hosts = frozenset(name.lower() for name in hosts)
    self._too_large = f"the body is larger than {most // 1024} KiB"

  async def __call__(self, scope: Mapping[str, Any], receive: Callable, send: Callable) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    # Of a header that is there twice the last counts.
    headers = dict(scope["headers"])
    if problem := self._foreign(scope, headers):
      await _refuse(send, 403, problem, (b"connection", b"close"))
      return
    given = headers.get(b"authorization", b"")
    if (
      self._expected
      and scope["path"] not in _OPEN
      # In constant time: how far a guess was right must not show in how long it takes.
      and not hmac.compare_digest(given, self._expected)
    ):
      await _refuse(send, 401, "a bearer token is needed", (b"www-authenticate", b"Bearer"))
      return
    # The router would take an id that ends in a line break for the one without it.
    if _CONTROL.search(scope["path"]):
      await _refuse(send, 422, "a control character in the path is not allowed")
      return
    if _is_more(headers.get(b"content-length", b"0"), self._most):
      # The rest of the body is not read, so the connection cannot go on.
      await _refuse(send, 413, self._too_large, (b"connection", b"close"))
      return
    count = 0

    async def counted_receive():
      nonlocal count
      message = await receive()
      # A body in chunks tells no length beforehand: it is counted as it comes.
      count += len(message.get("body", b""))
      if count > self._most:
        # The one exception that FastAPI lets out of reading a body.
        from starlette.exceptions import HTTPException

        raise HTTPException(413, self._too_large, headers={"connection": "close"})
      return message

    await self._app(scope, counted_receive, send)

  def _foreign(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> str:
    """What is wrong with host or origin; empty: nothing."""
    host = headers.get(b"host", b"").decode("latin-1")
    if self._hosts and scope["path"] not in _PROBES and host_name(host) not in self._hosts:
      return "this host name is not served; --allowed_hosts names those that are"
    origin = headers.get(b"origin")
    # Reading changes nothing, and browsers send no origin with many such requests.
    if origin is None or scope["method"] in _READING:
      return ""
    # scheme://authority; the page itself sends the authority that it was loaded under, which is
    # that of the request.
    authority = origin.decode("latin-1").lower().partition("://")[2]
    if authority != host.strip().lower():
      return "a page of another origin may not change anything"
    return ""


def _is_more(length: bytes, most: int) -> bool:
  # Eighteen digits fit an int64; a longer number need not be read at all.
  digits = length.strip().lstrip(b"0")
  return digits.isdigit() and (len(digits) > 18 or int(digits) > most)


async def _refuse(send: Callable, status: int, words: str, *more: tuple[bytes, bytes]) -> None:
  body = json_bytes({"error": words})
  headers = [
    (b"content-type", b"application/json"),
    (b"content-length", str(len(body)).encode()),
    *more,
  ]
  await send({"type": "http.response.start", "status": status, "headers": headers})
  await send({"type": "http.response.body", "body": body})
