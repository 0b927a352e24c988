"""A server in a thread, asked over raw sockets."""

import asyncio
import contextlib
import http.client
import os
import socket
import threading
import time

import uvicorn

from gr4ad_jax.serving import connections
from gr4ad_jax.serving.starting import Gateway


async def app(scope, receive, send):
  """Reads the body, then answers with its length, or with as many bytes as the path says.

  It does not keep the body: how large one may be is the guard's to say, not the connection's.
  """
  length = 0
  more = True
  while more:
    message = await receive()
    if message["type"] == "http.disconnect":
      return
    length += len(message.get("body", b""))
    more = message.get("more_body", False)
  path = scope["path"].strip("/")
  content = b"x" * int(path) if path.isdigit() else str(length).encode()
  headers = [(b"content-length", str(len(content)).encode())]
  await send({"type": "http.response.start", "status": 200, "headers": headers})
  await send({"type": "http.response.body", "body": content})


class Served:
  """A server in a thread."""

  def __init__(self, limits, served=app):
    self.gateway = Gateway()
    self.gateway.app = served
    self.listener = socket.create_server(("127.0.0.1", 0))
    self.address = self.listener.getsockname()
    settings = {
      "log_level": "warning",
      "log_config": None,
      "lifespan": "off",
      "timeout_graceful_shutdown": 8,
    }
    self.server = uvicorn.Server(
      uvicorn.Config(self.gateway, http=connections.protocol(limits), ws="none", **settings)
    )
    run = self.server.serve(sockets=[self.listener])
    self.thread = threading.Thread(target=asyncio.run, args=(run,), daemon=True)
    self.thread.start()
    while not self.server.started:
      time.sleep(0.01)

  def connect(self, sent=b""):
    """A raw connection on which something was sent."""
    found = socket.create_connection(self.address, timeout=20)
    found.sendall(sent)
    return found

  def ask(self, path="/"):
    """(status, seconds) that a well-behaved client gets.

    The seconds are those in which the server's thread worked between the request and its answer,
    for whomever: what a client waits for on a machine that does nothing else.
    """
    clock = time.pthread_getcpuclockid(self.thread.ident)
    begin = time.clock_gettime(clock)
    client = http.client.HTTPConnection(*self.address, timeout=20)
    with contextlib.closing(client):
      client.request("GET", path)
      return client.getresponse().status, time.clock_gettime(clock) - begin

  def end(self):
    """Seconds that the shutdown takes."""
    begin = time.monotonic()
    self.server.should_exit = True
    self.thread.join(30)
    assert not self.thread.is_alive()
    return time.monotonic() - begin


def resident():
  """MiB of memory that this process holds."""
  with open("/proc/self/statm") as file:
    return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def until_closed(sock):
  """All that comes until the other side closes."""
  found = b""
  with contextlib.suppress(ConnectionError):
    while piece := sock.recv(65536):
      found += piece
  return found
