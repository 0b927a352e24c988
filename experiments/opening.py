"""Opens a run while the server already answers, and tells how far it is."""

import gc
import sys
import threading
import time
from collections.abc import Callable

from gr4ad_jax.arms import arms_file
from gr4ad_jax.config import Config
from gr4ad_jax.serving.starting import Gateway

_EVERY = 5.0  # seconds between two lines


class Progress:
  """A thread that tells on stderr what a start is doing: a line every five seconds, or one that is
  written over.

  Args:
    gateway: knows what is being done.
  """

  def __init__(self, gateway: Gateway):
    self._gateway = gateway
    self._over = threading.Event()
    self._thread = threading.Thread(target=self._tell, name="progress", daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Says no more."""
    self._over.set()
    self._thread.join()

  def _tell(self) -> None:
    begin = time.monotonic()
    live = sys.stderr.isatty()
    while not self._over.wait(0.5 if live else _EVERY):
      line = f"starting, {time.monotonic() - begin:.0f} s: {self._gateway.doing}"
      # \x1b[K clears what a longer line has left behind.
      print(
        f"\r{line}\x1b[K" if live else line, end="" if live else "\n", file=sys.stderr, flush=True
      )
    if live:
      print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class Opening:
  """Opens the run on a thread of its own, while the server says that it lives.

  Args:
    config: of the run and the server.
    checkpoint: 'best', 'last' or a step.
    token: see `create_app`.
    hosts: see `create_app`.
    gateway: gets the app; its address is told then.
    ended: called where the run cannot be opened.
  """

  def __init__(
    self, config: Config, checkpoint: int | str, token: str, hosts: tuple[str, ...],
    gateway: Gateway, ended: Callable[[], None],
  ):  # fmt: skip
    self._checkpoint = checkpoint
    self._arguments = (config, token, hosts)
    self._gateway = gateway
    self._ended = ended
    self.engine = None
    self.error: BaseException | None = None
    self.thread = threading.Thread(target=self._open, name="opening", daemon=True)

  def _open(self) -> None:
    progress = Progress(self._gateway)
    try:
      app = self._opened(*self._arguments)
      gc.collect()
      gc.freeze()  # what was loaded stays: collections look only at what requests leave behind
      progress.close()
      self._gateway.app = app
      print(f"serving on {self._gateway.address}", flush=True)
    except BaseException as error:  # told by the main thread
      progress.close()
      self.error = error
      self._ended()

  def _opened(self, config: Config, token: str, hosts: tuple[str, ...]):
    # Imported here: they bring JAX, and the port is bound and asked before that.
    from gr4ad_jax.engine.arms import ArmsEngine
    from gr4ad_jax.engine.engine import ServingEngine
    from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
    from gr4ad_jax.serving.app import create_app

    enable_compilation_cache()
    compiled = self._gateway.compiled
    if config.serving.arms:
      self.engine = ArmsEngine(config, arms_file.load(config.serving.arms), compiled, early=True)
    else:
      self.engine = ServingEngine(config.workdir, config, self._checkpoint, compiled, early=True)
    return create_app(self.engine, token, hosts)
