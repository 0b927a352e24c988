"""What a binary does about addresses in a bucket: which flags may be one, and what is told."""

import sys
import time

from absl import flags

from gr4ad_jax.config import ConfigError
from gr4ad_jax.remote import inputs, mirrors, transfers, urls

from . import log_lines
from .progress import remaining

_INPUTS = (*inputs.SOURCES, "examples_path")
_QUIET = 5.0  # seconds of a transfer that nothing is said of
_EVERY = 10.0  # seconds between two lines, where no terminal is


def begin(local: str, given: flags.FlagValues = flags.FLAGS) -> None:
  """Refuses addresses where the binary reads or writes a local path; tells of transfers from now
  on.

  Args:
    local: why --workdir may not be one, of this binary; empty: it may.
    given: the flags.

  Raises:
    ConfigError: such an address.
  """
  for name in given:
    values = given[name].value
    for value in values if isinstance(values, (list, tuple)) else [values]:
      if not isinstance(value, str) or not urls.is_url(value):
        continue
      if name == "workdir" and local:
        raise ConfigError(f"--workdir={value} is not allowed: {local}; name a local directory")
      if name not in ("workdir", "beside", *_INPUTS):
        in_buckets = ", ".join(f"--{flag}" for flag in ("workdir", *_INPUTS))
        raise ConfigError(
          f"--{name}={value} is not allowed: name a local path; {in_buckets} may lie in a bucket"
        )
  transfers.listen(TransferProgress())


def finish() -> None:
  """Sends what is left, and tells where to. Raises OSError where a bucket does not take it."""
  for url in mirrors.finish():
    log_lines.say(f"sent to {url}", sent=url)


class TransferProgress:
  """Tells of transfers that take a while: bytes, rate and ETA, on standard error.

  Threads call it one at a time.
  """

  def __init__(self):
    self._what = ""
    self._began = 0.0
    self._told = 0.0

  def __call__(self, what: str, done: int, total: int) -> None:
    """Hears that `done` bytes of `total` are carried."""
    now = time.monotonic()
    if what != self._what:
      self._what = what
      self._began = now
      self._told = now + _QUIET - _EVERY
    if now - self._told < _EVERY or now - self._began < _QUIET:
      return
    self._told = now
    rate = done / max(now - self._began, 1e-9)
    eta = remaining(total - done, rate)
    line = f"{what}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB  {rate / 1e6:.1f} MB/s  ETA {eta}"
    print(line, file=sys.stderr, flush=True)
