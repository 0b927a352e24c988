"""The parameters in use, while a learner promotes and deletes."""

import pytest

from gr4ad_jax.config import ConfigError
from gr4ad_jax.learning.in_use import ParamsInUse
from tests import tiny


class Moving(ParamsInUse):
  """In-use parameters of which a read finds what `there` says; the pointer moves by `steps`."""

  def __init__(self, steps, there):
    super().__init__(tiny.Config(), None)
    self.read = []
    self._there = there
    self._promotions = self
    self._steps = list(steps)

  @property
  def in_use(self):
    return self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]

  def _read(self, step):
    self.read.append(step)
    if step not in self._there:
      raise ConfigError(f"{step} is gone")
    return f"parameters of {step}"


def test_what_was_deleted_while_it_was_read_gives_way_to_what_is_in_use():
  found = Moving([10, 30, 30], {30})
  assert found.latest() == "parameters of 30" and found.read == [10, 30]
  assert found.latest() == "parameters of 30" and found.read == [10, 30]  # known


def test_what_is_in_use_and_damaged_is_told():
  found = Moving([10], set())
  with pytest.raises(ConfigError, match="10 is gone"):
    found.latest()
