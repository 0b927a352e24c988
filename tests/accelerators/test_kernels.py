"""The kernels' suite: what it compares and times, and that it notices a wrong kernel."""

import dataclasses

import jax.numpy as jnp
import pytest

from gr4ad_jax.accelerators import kernels
from gr4ad_jax.config import (
  Config,
  ConfigError,
  DataConfig,
  ModelConfig,
  SearchConfig,
  TrainConfig,
)

CONFIG = Config(
  data=DataConfig(history_slots=5, neighbor_slots=1, rising_slots=0, targets=2),
  model=ModelConfig(width=32, heads=2, kv_groups=1, compute_dtype="float32"),
  search=SearchConfig(beams=(4, 8, 200)),
  training=TrainConfig(batch_size=2),
)


def test_figures_of_the_kernel():
  found = kernels.measure(CONFIG, 2)
  # Of lazy layers; of late ones, with 2 targets on 3 levels; and of a search, of a request alone.
  assert list(found["queries"]) == ["4", "11", "200"]
  assert found["queries"]["200"]["shapes"]["B"] == 1
  one = found["queries"]["4"]
  assert one["shapes"] == {"B": 2, "Q": 4, "S": 7, "H": 2, "d": 16}
  assert set(one["apart"]) == {"read", "dq", "dkv"}
  assert max(one["apart"].values()) < 1e-5  # interpreted, in float32
  for way in ("fused", "plain"):
    assert 0 < one[way]["low"] <= one[way]["median"] <= one[way]["high"]
  assert "apart by" in kernels.summary(found)


def test_a_wrong_kernel_is_noticed(monkeypatch):
  monkeypatch.setattr(
    kernels, "fused_attend",
    lambda q, kv, mask: (kernels.attend(q, kv, kv, jnp.ones_like(mask)[:, None]), kv),
  )  # fmt: skip
  with pytest.raises(RuntimeError, match="the kernel is not the products at .* apart by"):
    kernels.measure(CONFIG, 1)


def test_sizes_that_the_kernel_does_not_take_are_named():
  narrow = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, width=24))
  with pytest.raises(ConfigError, match="--width=24 is not allowed: the kernel does not take"):
    kernels.measure(narrow, 1)
