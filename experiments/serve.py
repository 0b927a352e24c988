"""Serves a trained run over HTTP.

  python -m experiments.serve --workdir=runs/online_retail --port=8080

/healthz answers at once. It prints the address when it can serve, with one search that suits any
request; the others are compiled behind it. Docs are at /docs, a page to look at it at /. SIGTERM or
Ctrl-C ends it: no new connections, what was begun is answered, exit status 0. With --compile_only
it fills the compilation cache and ends, so that a container can be shipped with its programs.
"""

import contextlib
import logging
import os
import signal
import socket
import sys

from absl import flags

from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.serving.guard import LOOPBACK
from gr4ad_jax.serving.starting import Gateway

from . import flags as flags_lib
from . import log_lines
from .opening import Opening, Progress
from .token_file import read_token

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  "best",
  "'best', 'last', a step, or 'promoted' by a learner; a newer one is loaded by itself.",
)
_COMPILE_ONLY = flags.DEFINE_bool(
  "compile_only", False, "Compile every search into the cache, and end."
)
_GRACE = 8  # seconds for requests that were begun, at the end; Kubernetes kills after 30
_SWITCH = (
  5e-4  # seconds that a thread of Python keeps the interpreter while another waits; 5e-3 by default
)
_BACKLOG = 128  # connections that wait to be taken; so many may be taken at once


def served_hosts(config: Config, token: str) -> tuple[str, ...]:
  """Names under which the server may be asked; empty: any.

  Raises:
    ConfigError: other machines could reach it without a token.
  """
  serving = config.serving
  here = serving.host in LOOPBACK
  if not here and not token:
    raise ConfigError(
      f"--host={serving.host} is not allowed without --token_file: other machines could change "
      "ads; "
      "--host=127.0.0.1 serves this machine alone"
    )
  named = tuple(filter(None, (name.strip() for name in serving.allowed_hosts.split(","))))
  return named or (LOOPBACK if here else ())


def listen(host: str, port: int) -> socket.socket:
  """A bound socket. Raises ConfigError where the address is taken or not this machine's."""
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  found = socket.socket(family, socket.SOCK_STREAM)
  found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    found.bind((host, port))
    found.listen(_BACKLOG)  # at once: until one of two listens, both may bind
  except OSError as error:
    found.close()
    raise ConfigError(
      f"--host={host} --port={port} cannot be listened on: {error.strerror or error}"
    ) from error
  return found


class Short(logging.Formatter):
  """Cuts every line of another formatter to a kilobyte, tracebacks too: some of it a client may
  have chosen.

  Args:
    inner: writes the lines.
  """

  def __init__(self, inner: logging.Formatter):
    super().__init__()
    self._inner = inner

  def format(self, record):
    return "\n".join(map(log_lines.cut, self._inner.format(record).splitlines()))


def make_server(config: Config, gateway: Gateway):
  """A server of the gateway's app; its `run` answers until SIGTERM or Ctrl-C."""
  try:
    import uvicorn
  except ImportError as error:
    raise ImportError("uvicorn is missing: pip install 'gr4ad_jax[serve]'") from error
  from gr4ad_jax.serving import connections

  class Server(uvicorn.Server):
    """Ends with status 0 on a signal, where uvicorn would raise it again."""

    def end(self):
      self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self):
      before = {
        number: signal.signal(number, self.handle_exit)
        for number in (signal.SIGTERM, signal.SIGINT)
      }
      try:
        yield
      finally:
        for number, handler in before.items():
          signal.signal(number, handler)

  serving = config.serving
  limits = connections.Limits(
    connections=connections.affordable(serving.max_connections),
    of_a_peer=serving.max_peer_connections,
    header_bytes=serving.max_header_kb << 10,
    seconds=serving.request_seconds,
  )
  settings = {
    "log_level": "warning",
    "access_log": False,
    "lifespan": "off",
    "server_header": False,
  }
  # No logging of its own: setting that up would close the handlers that are there.
  settings |= {"http": connections.protocol(limits), "ws": "none", "log_config": None}
  return Server(
    uvicorn.Config(gateway, timeout_graceful_shutdown=_GRACE, backlog=_BACKLOG, **settings)
  )


def compile_only(config: Config, checkpoint: int | str) -> int:
  """Fills the compilation cache with every search of a run."""
  from gr4ad_jax.engine.engine import ServingEngine
  from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache

  enable_compilation_cache()
  gateway = Gateway()
  progress = Progress(gateway)
  with (
    contextlib.closing(progress),
    ServingEngine(config.workdir, config, checkpoint, gateway.compiled),
  ):
    print(gateway.doing)
  return 0


def main(argv):
  """Listens, opens the run, then serves it."""
  del argv
  # Until the server listens, and has a handler of its own. An exception would be lost where the
  # signal meets a callback of the garbage collector; what lies on disk is as whole as after a kill.
  signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
  for handler in logging.getLogger().handlers:
    handler = getattr(handler, "python_handler", handler)  # absl's hands all on to one of its own
    if not log_lines.is_on():  # its objects are cut already
      handler.setFormatter(Short(handler.formatter or logging.Formatter()))
  checkpoint = flags_lib.checkpoint(_CHECKPOINT.value, promoted=True)
  config = flags_lib.config_from_workdir()
  token = read_token(config.serving.token_file)
  hosts = served_hosts(config, token)
  if _COMPILE_ONLY.value:
    return compile_only(config, checkpoint)
  sys.setswitchinterval(_SWITCH)
  with contextlib.closing(listen(config.serving.host, config.serving.port)) as listener:
    host, port = listener.getsockname()[:2]
    gateway = Gateway(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    server = make_server(config, gateway)
    opening = Opening(config, checkpoint, token, hosts, gateway, server.end)
    opening.thread.start()
    server.run(sockets=[listener])
  if opening.error is not None:
    raise opening.error
  if opening.engine is None or opening.thread.is_alive():
    os._exit(0)  # ended while the run was opened: nothing waits for the compiler
  opening.engine.close(wait=False)
  if opening.engine.compiling:
    os._exit(0)
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
