"""Clients that mean harm, over real sockets: what they may cost, and that others are answered
meanwhile.
"""

import asyncio
import contextlib
import gc
import http.client
import json
import os
import socket
import threading
import time

import pytest

from gr4ad_jax.serving import connections
from tests.serving.sockets import Served, app, resident, until_closed

LIMITS = connections.Limits(connections=20, of_a_peer=0, header_bytes=4096, seconds=0.5)
GET = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
MANY = 200


@pytest.fixture(autouse=True, scope="module")
def collected_as_in_a_server():
  """Garbage is collected as by default, and what other tests left is no part of it.

  `tests/conftest.py` collects rarely. An attack is judged by the memory and the time that it costs,
  and a collection of all that a session of tests holds takes seconds: it is done once, here.
  """
  rarely = gc.get_threshold()
  gc.collect()
  gc.freeze()
  gc.set_threshold(700, 10, 10)
  yield
  gc.set_threshold(*rarely)
  gc.unfreeze()


@pytest.fixture
def served():
  found = Served(LIMITS)
  yield found
  found.server.should_exit = True
  found.server.force_exit = True
  found.thread.join(10)


def pour(sock, content, seconds):
  """Sends the same again and again, reading nothing, until it is refused or the time is over;
  how often.
  """
  sock.settimeout(0.2)
  end = time.monotonic() + seconds
  count = 0
  while time.monotonic() < end:
    try:
      sock.sendall(content)
      count += 1
    except TimeoutError:
      continue
    except OSError:
      break
  return count


def attack(served, first, more, seconds):
  """Pours the same into one connection after another."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    with contextlib.suppress(OSError), served.connect(first) as sock:
      pour(sock, more, end - time.monotonic())


# (sent first, poured in after it), by what it is.
POURED = {
  "pipelined": (b"", GET * 400),
  "body": (
    b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n",
    b"a" * 20_000,
  ),
  "headers": (b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 4000),
  "url": (b"GET /", b"a" * 20_000),
  "breaks": (b"", b"\r\n" * 10_000),
  "trailers": (CHUNKED + b"0\r\n", b"a: b\r\n" * 4000),
  "one trailer": (CHUNKED + b"0\r\na: ", b"b" * 20_000),
  "chunks' names": (CHUNKED + b"1;", b"a" * 20_000),
  "large answers": (b"", b"GET /1000000 HTTP/1.1\r\nhost: localhost\r\n\r\n"),
}


def attacked(served, kind, seconds, path="/"):
  """Attacks a server, and asks it meanwhile; fails where it grows, or others wait."""
  before = resident()
  attacking = threading.Thread(target=attack, args=(served, *POURED[kind], seconds))
  attacking.start()
  slowest = 0.0
  asked = 0
  while attacking.is_alive() or not asked:
    status, worked = served.ask(path)
    assert status == 200
    slowest = max(slowest, worked)
    asked += 1
  print(f"{kind}: {resident() - before:.1f} MiB, {asked} asked, {slowest:.3f} s at most")
  assert resident() - before < 64 and slowest < 1


@pytest.mark.parametrize("seconds", [0.7, pytest.param(10.0, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", POURED)
def test_what_is_poured_in_costs_no_memory_and_nobody_waits(served, kind, seconds):
  attacked(served, kind, seconds)
  first, more = POURED[kind]
  # Such a connection is closed by the server, whatever else the client might send.
  sock = served.connect(first)
  pour(sock, more, 2.0)
  sock.settimeout(5)
  with contextlib.suppress(OSError):
    until_closed(sock)
  with pytest.raises(OSError):
    for _ in range(100):
      sock.sendall(GET)
      time.sleep(0.02)


@pytest.mark.parametrize("kind", ["pipelined", "headers", "body"])
def test_a_server_that_starts_is_held_to_the_same(served, kind):
  served.gateway.app = None
  attacked(served, kind, 0.7, "/healthz")
  assert served.ask("/")[0] == 503
  served.gateway.app = app
  assert served.ask("/")[0] == 200


@pytest.mark.parametrize(
  ("sent", "status"),
  [
    (b"", b""),
    (b"\r\n\r\n", b""),
    (b"GET / HT", b"408"),
    (b"GET / HTTP/1.1\r\nhost: local", b"408"),
    (b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nabc", b""),
  ],
)
def test_a_request_that_does_not_come_whole_is_given_up(served, sent, status):
  sock = served.connect(sent)
  found = until_closed(sock)
  assert found.split(b" ")[1:2] == ([status] if status else [])
  if status:
    assert json.loads(found.partition(b"\r\n\r\n")[2]) == {
      "error": "the request did not come whole in time"
    }


def test_dripping_bytes_does_not_lengthen_the_time(served):
  sock = served.connect(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n")
  begin = time.monotonic()
  with contextlib.suppress(OSError):
    while time.monotonic() - begin < 20:
      sock.sendall(b"a")
      time.sleep(0.05)
  assert time.monotonic() - begin < 10


def test_a_slow_answer_is_not_a_slow_client(served):
  async def slow(scope, receive, send):
    await asyncio.sleep(3 * LIMITS.seconds)
    await app(scope, receive, send)

  served.gateway.app = slow
  assert served.ask()[0] == 200


def test_a_client_that_reads_on_gets_all_of_a_long_answer(served):
  sock = served.connect(b"GET /3000000 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
  time.sleep(0.3)
  assert until_closed(sock).count(b"x") == 3_000_000


def test_a_kept_connection_serves_one_request_after_another(served):
  with contextlib.closing(http.client.HTTPConnection(*served.address, timeout=20)) as client:
    for size in (10, 5000, 40_000):
      client.request("POST", "/", b"a" * size)
      assert client.getresponse().read() == str(size).encode()
      time.sleep(0.7)  # longer than a request may take, shorter than a connection is kept


def test_some_pipelined_requests_are_answered_in_order(served):
  sock = served.connect(
    b"".join(b"GET /%d HTTP/1.1\r\nhost: localhost\r\n\r\n" % n for n in range(1, 9))
  )
  sock.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
  answers = until_closed(sock)
  lengths = [int(part.split(b"\r\n")[0]) for part in answers.split(b"content-length: ")[1:]]
  assert lengths == [*range(1, 9), 1]


def test_headers_up_to_the_limit_are_taken(served):
  for size, status in ((3000, b"200"), (8000, b"431")):
    sock = served.connect(
      b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\na: " + b"b" * size + b"\r\n\r\n"
    )
    assert until_closed(sock).split(b" ")[1] == status


def test_those_who_wait_longest_make_room_for_who_comes(served):
  crowd = [served.connect(b"GET / HTTP" if n % 2 else b"") for n in range(MANY)]
  status, _ = served.ask()
  assert status == 200
  assert (
    until_closed(crowd[0]) == b""
  )  # the first gave its place; told by nothing, as it had asked nothing
  for sock in crowd:
    sock.close()


def test_where_all_are_being_answered_one_more_gets_503(served):
  release = threading.Event()

  async def held(scope, receive, send):
    while not release.is_set():
      await asyncio.sleep(0.01)
    await app(scope, receive, send)

  served.gateway.app = held
  crowd = [served.connect(GET) for _ in range(LIMITS.connections)]
  time.sleep(0.2)
  extra = until_closed(served.connect(GET))
  assert extra.startswith(b"HTTP/1.1 503") and b"retry-after" in extra
  release.set()
  for sock in crowd:
    assert sock.recv(65536).startswith(b"HTTP/1.1 200")
    sock.close()


def test_a_peer_has_its_share_alone_where_so_asked():
  limits = connections.Limits(connections=20, of_a_peer=3, header_bytes=4096, seconds=5.0)
  served = Served(limits)
  kept = [served.connect() for _ in range(3)]
  time.sleep(0.1)
  assert until_closed(served.connect()).startswith(b"HTTP/1.1 503")
  kept.pop().close()
  time.sleep(0.1)
  assert served.ask()[0] == 200
  assert served.end() < 10


def test_half_a_request_does_not_hold_the_end():
  served = Served(connections.Limits(connections=20, of_a_peer=0, header_bytes=4096, seconds=60.0))
  crowd = [
    served.connect(sent)
    for sent in (
      b"",
      b"GET / HT",
      b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nabc",
    )
  ]
  time.sleep(0.2)
  assert served.end() < 5
  for sock in crowd:
    sock.close()


def test_garbage_is_told_in_one_line_with_the_peer(served, caplog):
  for _ in range(50):
    assert until_closed(served.connect(b"\x00\x01" * 500 + b"\r\n\r\n")).startswith(b"HTTP/1.1 400")
  lines = [record.getMessage() for record in caplog.records]
  assert (
    len(lines) == 1 and "no HTTP" in lines[0] and "127.0.0.1" in lines[0] and len(lines[0]) < 1000
  )


def test_connections_leave_files_for_the_rest(monkeypatch):
  used = len(os.listdir("/dev/fd"))
  monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (used + 400, used + 400))
  assert 100 <= connections.affordable(10_000) <= 200
  assert connections.affordable(5) == 5


def test_answers_that_nobody_reads_are_bounded_in_all():
  served = Served(connections.Limits(connections=400, of_a_peer=0, header_bytes=4096, seconds=60.0))
  before = resident()
  crowd = []
  for _ in range(300):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.connect(served.address)
    sock.sendall(b"GET /400000 HTTP/1.1\r\nhost: localhost\r\n\r\n" * 8)
    crowd.append(sock)
  status, _ = served.ask()
  assert status == 200
  assert resident() - before < 64
  for sock in crowd:
    sock.close()
  assert served.end() < 10


def test_a_body_in_the_smallest_chunks_is_taken(served):
  sock = served.connect(CHUNKED.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
  sock.sendall(b"1\r\nx\r\n" * 3000 + b"0\r\nname: value\r\n\r\n")
  assert until_closed(sock).endswith(b"\r\n\r\n3000")
