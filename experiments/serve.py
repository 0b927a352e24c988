"""Serves a trained run over HTTP.

  python -m experiments.serve --workdir=runs/online_retail --port=8080

It prints the address once it answers; docs are at /docs, a page to look at it at /. SIGTERM or Ctrl-C ends it: no new
connections, what was begun is answered, exit status 0.
"""

import contextlib
import gc
import os
import signal
import socket
import sys

from absl import flags

from experiments import flags as flags_lib
from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.serving.engine import ServingEngine

_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "'best', 'last' or a step; a newer one is loaded by itself.")
_GRACE = 30  # seconds for requests that were begun, at the end
_SWITCH = 5e-4  # seconds that a thread of Python keeps the interpreter while another waits; 5e-3 by default


def read_token(path: str) -> str:
  """The bearer token in a file; empty without a path. Raises ConfigError for a file that holds none."""
  if not path:
    return ""
  with open(path, encoding="utf-8") as file:
    token = file.read().strip()
  if not token or not token.isascii() or len(token.split()) != 1:
    raise ConfigError(f"--token_file={path} is not allowed: a file with one word of ASCII")
  return token


def listen(host: str, port: int) -> socket.socket:
  """A bound socket. Raises ConfigError where the address is taken or not this machine's."""
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  found = socket.socket(family, socket.SOCK_STREAM)
  found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    found.bind((host, port))
  except OSError as error:
    found.close()
    raise ConfigError(f"--host={host} --port={port} cannot be listened on: {error.strerror or error}") from error
  return found


def serve(config: Config, engine: ServingEngine, listener: socket.socket) -> None:
  """Answers until SIGTERM or Ctrl-C."""
  try:
    import uvicorn
  except ImportError as error:
    raise ImportError("uvicorn is missing: pip install 'gr4ad_jax[serve]'") from error
  from gr4ad_jax.serving.app import create_app

  class Server(uvicorn.Server):
    """Ends with status 0 on a signal, where uvicorn would raise it again; says when it answers."""

    async def startup(self, sockets=None):
      await super().startup(sockets)
      host, port = listener.getsockname()[:2]
      print(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    @contextlib.contextmanager
    def capture_signals(self):
      before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
      try:
        yield
      finally:
        for number, handler in before.items():
          signal.signal(number, handler)

  app = create_app(engine, read_token(config.serving.token_file))
  settings = {"log_level": "warning", "access_log": False, "lifespan": "off", "server_header": False}
  Server(uvicorn.Config(app, timeout_graceful_shutdown=_GRACE, backlog=1024, **settings)).run(sockets=[listener])


def main(argv):
  """Opens the run, then serves it."""
  del argv
  # Until the server listens, and has a handler of its own. An exception would be lost where the signal meets a callback
  # of the garbage collector; what lies on disk is as whole as after a kill.
  signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
  checkpoint = flags_lib.checkpoint(_CHECKPOINT.value)
  config = flags_lib.config_from_workdir()
  read_token(config.serving.token_file)
  listener = listen(config.serving.host, config.serving.port)
  enable_compilation_cache()
  sys.setswitchinterval(_SWITCH)
  with contextlib.closing(listener), ServingEngine(config.workdir, config, checkpoint, _progress) as engine:
    gc.collect()
    gc.freeze()  # what was loaded stays: collections look only at what requests leave behind
    serve(config, engine, listener)
  return 0


def _progress(done: int, wanted: int, seconds: float) -> None:
  if sys.stderr.isatty():
    print(f"\rcompiled {done}/{wanted} searches, {seconds:.0f} s", end="\n" * (done == wanted), file=sys.stderr)


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
