"""Reasons beside the batches, over a fake computer: of the first ads, and none where they cannot be
had in time.
"""

import asyncio
import dataclasses
import threading
import time
import types

import pytest

from gr4ad_jax.answering.computing import Loaded
from gr4ad_jax.answering.messages import Answer, Query, UnknownUser
from gr4ad_jax.engine.explaining import Explaining

ADS = tuple({"ad_id": f"ad{n}"} for n in range(4))
QUERY = Query(user="u1", explain=True)
ANSWER = Answer("model", 7, (4,), ADS)


class FakeComputer:
  """Gives each ad's place as its reason; notes how often it was asked, and fails where told. It is
  its own reasoner, and compiles until `compiled` is set.
  """

  def __init__(self):
    self.asked, self.fault = 0, None
    self.compiled = threading.Event()
    self.reasoner = types.SimpleNamespace(prepare=self._prepare)

  def nobody(self):
    return "nobody"

  def _prepare(self, variables, batch):
    assert (variables, batch) == ("weights", "nobody")
    assert self.compiled.wait(60)

  def reasons(self, query, answer, most, variables):
    assert (query, variables) == (QUERY, "weights")
    self.asked += 1
    if self.fault:
      raise self.fault
    return list(range(len(answer.ads[:most])))


@pytest.fixture
def computer():
  return FakeComputer()


@pytest.fixture
def explaining(computer):
  return Explaining(computer, lambda: Loaded(7, "weights"), 3)


@pytest.fixture
def ready(computer, explaining):
  """As `explaining`, compiled."""
  computer.compiled.set()
  explaining.explained(QUERY, ANSWER, soon())
  assert explaining.wait()
  computer.asked = 0
  return explaining


def soon():
  return time.monotonic() + 60


def given(answer):
  return [ad.get("reasons") for ad in answer.ads]


def test_nobody_waits_for_the_compiler(computer, explaining):
  assert explaining.explained(QUERY, ANSWER, soon()) == ANSWER
  assert asyncio.run(explaining.explained_async(QUERY, ANSWER, soon())) == ANSWER
  assert computer.asked == 0
  computer.compiled.set()
  assert explaining.wait()
  for answer in (
    explaining.explained(QUERY, ANSWER, soon()),
    asyncio.run(explaining.explained_async(QUERY, ANSWER, soon())),
  ):
    assert given(answer) == [0, 1, 2, None]
    assert [ad["ad_id"] for ad in answer.ads] == ["ad0", "ad1", "ad2", "ad3"]
  assert given(ANSWER) == [None] * 4  # what the cache keeps is as it was
  assert computer.asked == 2
  few = dataclasses.replace(ANSWER, ads=ADS[:2])
  assert given(explaining.explained(QUERY, few, soon())) == [0, 1]


def test_an_answer_is_one_without_reasons_too(computer, ready, caplog):
  older = dataclasses.replace(ANSWER, checkpoint=6)
  assert ready.explained(QUERY, older, soon()) == older
  assert ready.explained(QUERY, ANSWER, time.monotonic()) == ANSWER  # its deadline is over
  assert computer.asked == 0 and not caplog.records
  computer.fault = UnknownUser("u1")  # erased: the log must not name them
  assert ready.explained(QUERY, ANSWER, soon()) == ANSWER and not caplog.records
  computer.fault = ValueError("broken")
  assert ready.explained(QUERY, ANSWER, soon()) == ANSWER
  assert [record.message for record in caplog.records] == ["an answer could not be explained"]
  computer.fault = None
  with ready._turn:  # another one is being explained
    assert ready.explained(QUERY, ANSWER, time.monotonic() + 0.01) == ANSWER
    late = asyncio.run(ready.explained_async(QUERY, ANSWER, time.monotonic() + 0.01))
    assert late == ANSWER
  assert given(ready.explained(QUERY, ANSWER, soon()))[0] == 0


def test_reasons_that_are_not_wanted_are_not_compiled_for(computer, explaining):
  loaded = lambda: Loaded(7, "weights")  # noqa: E731
  silent = FakeComputer()
  silent.reasoner = None  # of a model that gives none
  for one, query, answer in (
    (explaining, dataclasses.replace(QUERY, explain=False), ANSWER),
    (explaining, QUERY, dataclasses.replace(ANSWER, source="fallback")),
    (explaining, QUERY, dataclasses.replace(ANSWER, ads=())),
    (Explaining(computer, loaded, 0), QUERY, ANSWER),
    (Explaining(silent, loaded, 3), QUERY, ANSWER),
  ):
    assert one.explained(query, answer, soon()) == answer
    assert one._compiler is None and not one.wait()


def test_a_program_that_cannot_be_compiled_is_told(computer, explaining, caplog):
  computer.reasoner.prepare = lambda *_: 1 / 0
  assert explaining.explained(QUERY, ANSWER, soon()) == ANSWER and not explaining.wait()
  assert explaining.explained(QUERY, ANSWER, soon()) == ANSWER  # and not begun again
  words = "no reasons will be given: their program was not compiled"
  assert [record.message for record in caplog.records] == [words]
