"""Bytes that are nearly HTTP, over raw sockets: no 5xx but 503, no long log line, and the server
goes on.
"""

import random
import socket

import pytest

from gr4ad_jax.serving import connections
from gr4ad_jax.serving.app import create_app
from tests.serving.fakes import FakeEngine
from tests.serving.sockets import Served

LIMITS = connections.Limits(connections=50, of_a_peer=0, header_bytes=16 << 10, seconds=2.0)
METHODS = (
  b"POST", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT", b"get",
  b"", b"A" * 40,
)  # fmt: skip
PATHS = (
  b"/",
  b"/healthz",
  b"/v1/recommend",
  b"/v1/ads/ad1",
  b"/v1/ads/%00",
  b"/v1/ads/%ff%fe",
  b"/v1/users?limit=1e9",
  b"/v1/users/u1/history?limit=-1",
  b"//",
  b"/../../etc/passwd",
  b"http://evil.example/v1/stats",
  b"/" + b"a" * 3000,
  b"/v1/ads/" + "ü".encode(),
  b"?",
  b"",
  b"/v1/stats#x",
  b"/%",
  b"/docs",
  b"/metrics",
  b"*",
  b"/v1/users",
)
VERSIONS = (b"HTTP/1.1",) * 5 + (
  b"HTTP/1.0",
  b"HTTP/2.0",
  b"HTTP/9.9",
  b"http/1.1",
  b"",
  b"HTTP/1.1 ",
)
TOKEN = b"authorization: Bearer s3cret"
HEADERS = (
  b"host: evil.example", b"host:", b"content-length: 5", b"content-length: -1",
  b"content-length: 99999999999999999999", b"content-length: 5, 6", b"transfer-encoding: chunked",
  b"connection: close", b"transfer-encoding: gzip, chunked", b"expect: 100-continue",
  b"upgrade: websocket", b"connection: upgrade", b"a", b": b", b"upgrade: h2c", b"origin: null",
  b"origin: http://localhost", b"authorization: Bearer \xff", b"x: \x00", b"x:" + b"y" * 5000,
  b"content-encoding: gzip", b"content-type: application/json", b"accept-encoding: br",
  b"cookie: " + b"a=b;" * 300, b"\xff\xfe: 1", b"content-type: multipart/form-data; boundary=",
  TOKEN, TOKEN, TOKEN,
)  # fmt: skip
BODIES = (
  b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"fffffffffffffffff\r\n", b"{}",
  b'{"user": "u1", "k": 3}', b"\x00" * 50, b'{"user": "\\ud800"}', b"[" * 3000,
  b'{"history": ["ad1", {"ad_id": "ad2", "time": NaN}]}', b"0\r\nx: y\r\n\r\n",
)  # fmt: skip
BREAKS = (b"\r\n",) * 6 + (b"\n", b"\r", b"\r\n ")


def nearly_http(rng):
  """One request, or several behind each other, with faults."""
  out = b""
  for _ in range(rng.choice((1, 1, 1, 2, 5))):
    end = rng.choice(BREAKS)
    method = rng.choice(METHODS) if rng.random() < 0.4 else b"GET"
    path = rng.choice(PATHS) if rng.random() < 0.6 else b"/healthz"
    line = b" ".join((method, path, rng.choice(VERSIONS)))
    chosen = [rng.choice(HEADERS) for _ in range(rng.randrange(4))]
    if rng.random() < 0.8:
      chosen.insert(0, b"host: localhost")
    body = rng.choice(BODIES)
    if rng.random() < 0.5:
      chosen.append(b"content-length: %d" % len(body))
    out += end.join((line, *chosen, b"", b"")) + body
  if rng.random() < 0.3:  # bytes changed anywhere
    mangled = bytearray(out)
    for _ in range(rng.randrange(1, 6)):
      mangled[rng.randrange(len(mangled))] = rng.randrange(256)
    out = bytes(mangled)
  return out[: rng.randrange(1, len(out) + 1)] if rng.random() < 0.2 else out


def answers(served, sent):
  """The statuses of all that comes back until the server closes or has nothing more to say."""
  found = b""
  with served.connect() as sock:
    sock.settimeout(0.2)
    try:
      sock.sendall(sent)
      sock.shutdown(socket.SHUT_WR)
      while piece := sock.recv(1 << 16):
        found += piece
    except OSError:
      pass
  parts = found.split(b"HTTP/1.1 ")[1:]
  return [int(part[:3]) for part in parts if part[:3].isdigit()]


@pytest.mark.parametrize("examples", [150, pytest.param(5000, marks=pytest.mark.long)])
def test_nearly_http_breaks_nothing(caplog, capfd, examples):
  served = Served(LIMITS, create_app(FakeEngine(), token="s3cret"))
  rng = random.Random(0)
  seen = set()
  for n in range(examples):
    sent = nearly_http(rng)
    for status in answers(served, sent):
      assert status < 500 or status == 503, (n, sent)
      seen.add(status)
    if n % 50 == 0:
      assert served.ask("/healthz")[0] == 200
  assert {200, 400, 401, 403} <= seen  # refused in many ways, and some of it was right
  assert served.end() < 10
  out, err = capfd.readouterr()
  lines = [
    *(record.getMessage() for record in caplog.records),
    *out.splitlines(),
    *err.splitlines(),
  ]
  assert all(len(line) <= 1024 for line in lines)
  assert len(lines) < 20 + examples / 10, lines[:30]
