"""Reasons for the first ads of an answer, beside the batches: who asks for them waits for them, and
no batch does.
"""

import asyncio
import dataclasses
import logging
import threading
import time
from collections.abc import Callable

from gr4ad_jax.answering.computing import Computer, Loaded
from gr4ad_jax.answering.messages import Answer, Query, UnknownUser
from gr4ad_jax.engine import plans

_log = logging.getLogger(__name__)


class Explaining:
  """Safe to call from several threads; one computes at a time.

  The program is compiled when reasons are first asked for, on a thread of its own. Until it is
  there, answers come without reasons.

  Args:
    computer: knows histories, contexts and the reasoner.
    loaded: gives the parameters in use.
    most: first ads of an answer that get reasons; 0: none.
  """

  def __init__(self, computer: Computer, loaded: Callable[[], Loaded], most: int):
    self._computer = computer
    self._loaded = loaded
    self._most = most if computer.reasoner is not None else 0
    self._turn = threading.Lock()  # of whoever computes
    self._starting = threading.Lock()
    self._ready = threading.Event()
    self._compiler: threading.Thread | None = None

  def explained(self, query: Query, answer: Answer, until: float) -> Answer:
    """The answer with reasons, or as it came: where none are asked for, for a list of popular ads,
    while the program is compiled, where another checkpoint has come into use since, or where it is
    not its turn in time. What fails is told in the log: without reasons it is an answer as well.

    Args:
      query: what was asked.
      answer: what it got.
      until: the query's deadline, seconds of `time.monotonic`. No reasons are begun after it.
    """
    if not self._can(query, answer):
      return answer
    left = until - time.monotonic()
    if left <= 0 or not self._turn.acquire(timeout=left):
      return answer
    try:
      loaded = self._loaded()
      if loaded.step != answer.checkpoint:
        # Other parameters would have other reasons.
        return answer
      reasons = self._computer.reasons(query, answer, self._most, loaded.variables)
    except UnknownUser:
      return answer  # erased since
    except Exception:
      _log.exception("an answer could not be explained")
      return answer
    finally:
      self._turn.release()
    # `strict` is off, since the first ads alone have reasons.
    first = [{**ad, "reasons": why} for ad, why in zip(answer.ads, reasons, strict=False)]
    return dataclasses.replace(answer, ads=(*first, *answer.ads[len(first) :]))

  async def explained_async(self, query: Query, answer: Answer, until: float) -> Answer:
    """As `explained`, on an event loop; at the deadline the answer goes as it came."""
    if not self._can(query, answer):
      return answer
    # The wait is bounded here too: a thread may have to be waited for as well.
    explaining = asyncio.to_thread(self.explained, query, answer, until)
    try:
      return await asyncio.wait_for(explaining, until - time.monotonic())
    except TimeoutError:
      return answer

  def wait(self) -> bool:
    """Waits for the compiler, where it was begun. Returns whether reasons can be given now."""
    if self._compiler is not None:
      self._compiler.join()
    return self._ready.is_set()

  def _can(self, query: Query, answer: Answer) -> bool:
    """Whether an answer is to have reasons now. The first one that is begins the compilation."""
    wanted = self._most and query.explain and answer.ads and answer.source != "fallback"
    if not wanted:
      return False
    # Two answers at once must not begin two compilations.
    with self._starting:
      if self._compiler is None:
        self._compiler = threading.Thread(target=self._compile, name="reasons", daemon=True)
        self._compiler.start()
    return self._ready.is_set()

  def _compile(self) -> None:
    plans.yield_to_others()
    try:
      computer = self._computer
      computer.reasoner.prepare(self._loaded().variables, computer.nobody())
      self._ready.set()
    except Exception:
      _log.exception("no reasons will be given: their program was not compiled")
