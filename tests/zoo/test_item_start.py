"""How models of single ads start, how their parameters lie on a mesh, and rows of a table that
are no ad.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.config import RewardConfig
from gr4ad_jax.features.batches import SLOT_FEATURES, USER_FEATURES
from gr4ad_jax.parallel import row_tables
from gr4ad_jax.zoo import items
from gr4ad_jax.zoo.ranker import Ranker
from tests.models import tiny
from tests.zoo.test_item_forward import BATCH, build, params_of
from tests.zoo.test_ranker_forward import EDGES, make_pairs

D, S, DRAWS = 16, 11, 1 << 14  # S: slots of a request
START = {  # standard deviation, 0 of what starts at 0; logical axes; shape
  "items": (D**-0.5, ("vocab", "embed"), (tiny.NUM_ADS, D)),
  "first": (D**-0.5, ("embed",), (D,)),
  "places/table": (D**-0.5, (None, "embed"), (S + 1, D)),
  "bias/place": (0.02, (None,), (S + 1,)),
  "bias/time": (0.02, (None,), (64,)),
  "history_bias": (0, (), ()),
}
OF_ADS = START | {"bos": (D**-0.5, ("embed",), (D,))}
OF_GR4AD = ("processor", "decoder", "head_", "ecpm_head", "copier", "value_reader")
OUT = {"attention_out", "ffn_out", "out"}  # kernels from a hidden width back to the model's


SHAPES = {  # of kernels, by the layer's name
  "qkv": (D, 3 * D),
  "attention_out": (D, D),
  "ffn_in": (D, 4 * D),
  "ffn_out": (4 * D, D),
  "uvqk": (D, 4 * D),
  "out": (D, D),
  "slot_in": (D + len(SLOT_FEATURES), 2 * D),
  "slot_kv": (2 * D, 2 * D),
  "user_in": (len(USER_FEATURES), 2 * D),
  "query": (2 * D, D),
  "user_hidden": (4 * D, 2 * D),
  "user_out": (2 * D, D),
  "ad_hidden": (D, 2 * D),
  "ad_out": (2 * D, D),
}
BIASED = {"ffn_in", "ffn_out", "out", "slot_in", "user_in", "user_hidden", "ad_hidden"}
W = 8
RANKER_BIASED = {
  "user_in",
  "crosses_0",
  "crosses_1",
  "deep_0",
  "deep_1",
  "value_deep",
  "purchase_out",
  "value_out",
}
RANKER_SHAPES = {
  "pair_in": (9, 2 * W), "user_in": (6, 2 * W), "ad_in": (W, 2 * W), "slot_in": (W + 2, 2 * W),
  "null_slot": (2 * W, 2 * W), "query": (W, W), "read_in": (2 * W, 2 * W),
  "crosses_0": (2 * W, 2 * W), "crosses_1": (2 * W, 2 * W), "deep_0": (2 * W, 2 * W),
  "deep_1": (2 * W, W), "value_deep": (3 * W, W), "purchase_out": (3 * W, 1), "value_out": (W, 1),
}  # fmt: skip


def starts(monkeypatch, module, *inputs):
  """What each parameter starts from: {path: (draw, axes, shape)}; nothing is compiled but the
  draws.

  `draw(shape)` gives numbers of the parameter's distribution in another shape.
  """
  found, make = {}, nn.Module.param

  def param(self, name, init, *shape, **settings):
    made = make(self, name, init, *shape, **settings)
    draw = lambda shape: nn.meta.unbox(init(jax.random.key(1), shape))  # noqa: E731
    found["/".join((*self.path, name))] = draw, made.shape
    return made

  with monkeypatch.context() as patch:
    patch.setattr(nn.Module, "param", param)
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs)["params"])
  leaves = jax.tree_util.tree_leaves_with_path(nn.get_partition_spec(params))
  axes = {"/".join(part.key for part in path): tuple(spec) for path, spec in leaves}
  return {path: (draw, axes[path], shape) for path, (draw, shape) in found.items()}


def deviation(draw, shape):
  """Standard deviation of many draws; that of a scalar's start is its size."""
  return np.abs(draw(())) if not shape else np.std(draw((*(1,) * (len(shape) - 1), DRAWS)))


@pytest.mark.parametrize("name", ["sasrec", "hstu", "two_tower", "gr4ad_items"])
def test_start_and_axes(name, monkeypatch):
  inputs = (BATCH, BATCH.target_codes_BMT) if name == "gr4ad_items" else (BATCH,)
  known, met = START if name == "gr4ad_items" else OF_ADS, set()
  found = starts(monkeypatch, build(name), *inputs)
  for path, (draw, axes, shape) in found.items():
    for end in (end for end in known if f"/{path}".endswith(f"/{end}")):
      met.add(end)
      assert (axes, shape) == known[end][1:], path
      np.testing.assert_allclose(deviation(draw, shape), known[end][0], rtol=0.04, err_msg=path)
    *_, layer, leaf = ("", *path.split("/"))
    if leaf == "kernel" and not path.startswith(OF_GR4AD):
      assert shape == SHAPES[layer], path
      assert axes == (("mlp", "embed") if layer in OUT else ("embed", "mlp")), path
      assert (path.replace("kernel", "bias") in found) == (layer in BIASED), path
  assert (
    met
    == {
      "sasrec": {"items", "bos", "places/table", "history_bias"},
      "hstu": {"items", "bos", "places/table", "history_bias", "bias/place", "bias/time"},
      "two_tower": {"items", "history_bias"},
      "gr4ad_items": {"items", "first", "places/table", "history_bias"},
    }[name]
  )


def test_the_rankers_start(monkeypatch):
  pairs, config = make_pairs(), RewardConfig(reward_width=8, reward_heads=2, reward_ids=8)
  for num_ads, rows in ((30, 9), (5, 6)):  # never more vectors than ads, and one for those without
    found = starts(monkeypatch, Ranker(config, tiny.CODEBOOKS, num_ads), pairs, EDGES)
    for name, size in {"ids": rows, "codes_0": 7, "codes_1": 5, "codes_2": 4}.items():
      draw, axes, shape = found[name]
      assert (axes, shape) == (("vocab", "embed"), (size, 8))
      np.testing.assert_allclose(deviation(draw, shape), 0.05, rtol=0.04)
    kernels = {
      path.split("/")[0]: shape for path, (_, _, shape) in found.items() if path.endswith("/kernel")
    }
    assert kernels == RANKER_SHAPES
    assert {path.split("/")[0] for path in found if path.endswith("/bias")} == RANKER_BIASED


def test_rows_that_are_no_ad_score_nothing(monkeypatch):
  """A large table is padded to a multiple that meshes divide."""
  state, table = np.ones((2, 3), np.float32), np.arange(15, dtype=np.float32).reshape(5, 3)
  np.testing.assert_array_equal(items.score_all(state, table, 5, jnp.float32), [table.sum(1)] * 2)
  padded = np.asarray(items.score_all(state, table, 4, jnp.float32))
  assert np.isneginf(padded[:, 4]).all() and np.isfinite(padded[:, :4]).all()
  monkeypatch.setattr(row_tables, "SMALL", 8)
  shapes = jax.eval_shape(lambda: build("sasrec").init(jax.random.key(0), BATCH)["params"])
  assert shapes["items"].value.shape == (row_tables.MULTIPLE, D)


def test_an_embedding_of_padding_is_zero():
  found = build("sasrec").apply(
    {"params": params_of("sasrec")}, jnp.array([0, -1, 29]), method="embed"
  )
  table = params_of("sasrec")["items"]
  np.testing.assert_array_equal(found, [table[0], 0 * table[0], table[29]])
