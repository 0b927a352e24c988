"""A Redis server on loopback, on a free port. Where there is none, tests of it are skipped."""

import contextlib
import shutil
import socket
import subprocess
import time

import pytest

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


class RedisServer:
  """A server as a process; `kill` and `start` again on the same files and port.

  Args:
    folder: for its files.
    settings: of `redis-server`.
  """

  def __init__(self, folder, *settings):
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      self.port = free.getsockname()[1]
    self.url = f"redis://127.0.0.1:{self.port}"
    self.folder = folder
    self._settings = settings or DURABLE
    self.start()

  def start(self):
    """Starts it; returns when it answers."""
    command = [
      "redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
      "--dir", str(self.folder), *self._settings,
    ]  # fmt: skip
    self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while b"Ready to accept" not in self.process.stdout.readline():
      if self.process.poll() is not None:
        raise RuntimeError("redis-server has ended")
    while True:
      with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
        return
      time.sleep(0.01)

  def kill(self):
    """Ends it as by kill -9."""
    self.process.kill()
    self.process.wait()
    self.process.stdout.close()


@contextlib.contextmanager
def running(folder, *settings):
  """A server for the length of a block."""
  pytest.importorskip("redis", reason="the redis extra is not installed")
  if shutil.which("redis-server") is None:
    pytest.skip("there is no redis-server")
  server = RedisServer(folder, *settings)
  try:
    yield server
  finally:
    server.kill()
