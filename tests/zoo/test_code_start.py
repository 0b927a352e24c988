"""How models of UA-SIDs start, how their parameters lie on a mesh, and what remat makes again."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests.models import forwards, tiny
from tests.zoo.test_code_models import NAMES, build
from tests.zoo.test_item_start import deviation, starts

OUT = {  # maps from a hidden width back to the model's
  *(
    "slots_out",
    "user_out",
    "cross_out",
    "self_out",
    "out_proj",
    "attention_out",
    "ffn_out",
    "out",
  ),
}
START = {  # standard deviation, logical axes
  "codes_0": (0.5, ("vocab", "embed")),
  "codes_2": (0.5, ("vocab", "embed")),
  "bos": (0.5, ("embed",)),
  "decoder/level": (1, (None, "embed")),
  "processor/slot_edges": (0, (None,)),
  "processor/user_edges": (0, (None,)),
  "ecpm_head/bias": (0, ("mlp",)),
  "copier/score/kernel": (1, ("mlp", None)),
  "copier/gate/kernel": (1, ("embed", None)),
  "copier/gate/bias": (0, (None,)),
}
OF_MODEL = {
  "gr4ad": {"history_bias": (0, ())},
  "parallel_heads": {},
  "deepseek_mtp": {"decoder/first": (1, ("embed",))},
  "tiger": {"codes_0": (1, ("vocab", "embed")), "codes_2": (1, ("vocab", "embed")),
            "bos": (1, (None, "embed")), "relative": (0.02, (None, None))},
}  # fmt: skip


@pytest.mark.parametrize("name", OF_MODEL)
def test_start_and_axes(name, monkeypatch):
  batch = tiny.make_batch()
  model = build(name, feature_bins=2, history_bias=name == "gr4ad")
  found = starts(monkeypatch, model, batch, batch.target_codes_BMT)
  expected = (START if name != "tiger" else {}) | OF_MODEL[name]
  if name == "deepseek_mtp":
    del expected["decoder/level"]
  for path, (size, axes) in expected.items():
    draw, laid, shape = found[path]
    assert laid == axes, path
    np.testing.assert_allclose(deviation(draw, shape), size, rtol=0.04, err_msg=path)
  if name == "tiger":  # a start token each of encoder and decoder; T5's buckets by head
    assert [found[path][2] for path in ("bos", "relative")] == [(2, 16), (32, 4)]
  for path, (draw, laid, shape) in found.items():
    *_, layer, leaf = ("", *path.split("/"))
    if leaf == "kernel" and path not in expected:
      assert laid == (("mlp", "embed") if layer in OUT else ("embed", "mlp")), path
      np.testing.assert_allclose(deviation(draw, shape), 1, rtol=0.04, err_msg=path)  # of 1 input
      assert np.std(draw((64, 512))) == pytest.approx(1 / 8, rel=0.04)
    elif leaf in ("scale", "bias"):
      assert (draw(shape) == (leaf == "scale")).all(), path
  assert {path for path in found if path.startswith("codes")} == {f"codes_{t}" for t in range(3)}


@pytest.mark.parametrize("name", ["gr4ad", "tiger"])
def test_a_bfloat16_model_has_float32_logits_and_outputs(name):
  """Nothing is computed."""
  batch = tiny.make_batch()
  model = build(name, compute_dtype="bfloat16", layers=1, lazy_layers=0)
  params = tiny.make_params(model)
  call = nn.apply(forwards.everything, model)
  found = jax.eval_shape(lambda p: call({"params": p}, batch, batch.target_codes_BMT), params)
  assert {str(h.dtype) for h in found["h"]} == {"bfloat16"}
  scores = (found["outputs"], found["logits"], found["value"], found["final"])
  assert {str(x.dtype) for x in jax.tree.leaves(scores)} == {"float32"}


def test_the_chain_has_no_lazy_layers():
  assert build("deepseek_mtp").config.lazy_layers == 0


@pytest.mark.parametrize(
  ("name", "blocks"),
  [
    ("gr4ad", 2),
    pytest.param("parallel_heads", 2, marks=pytest.mark.long),
    ("deepseek_mtp", 3),
    ("tiger", 4),
  ],
)
def test_remat_makes_every_block_again(name, blocks):
  """Traced in training, where a wrong list of arguments that are no arrays would fail."""
  batch = jax.tree.map(lambda x: x[:1], tiny.make_batch())
  # A lazy block once, and a late one once: first level, the others, and without codes together.
  lazy = {"lazy_layers": 1} if name == "gr4ad" else {}
  plain = build(name, layers=3 if name == "deepseek_mtp" else 2, dropout=0.2, **lazy)
  params = tiny.make_params(plain)

  def trace(model):
    rngs = {"dropout": jax.random.key(0)}
    call = lambda p: model.apply(  # noqa: E731
      {"params": p}, batch, batch.target_codes_BMT, train=True, rngs=rngs
    )
    return str(jax.make_jaxpr(call)(params)).count("remat2[")

  assert trace(plain.clone(remat=tiny.fresh("none"))) == 0
  heads_and_others = {"tiger": 0, "gr4ad": 9, "parallel_heads": 9, "deepseek_mtp": 9}[name]
  assert trace(plain.clone(remat="full")) == blocks + heads_and_others


def test_which_models_predict_a_value_and_which_learn_lists():
  values = {name: build(name).predicts_value for name in (*NAMES, "gr4ad")}
  lists = {name: build(name).learns_lists for name in values}
  assert [name for name, known in values.items() if not known] == ["tiger"]
  assert [name for name, known in lists.items() if not known] == ["tiger", "gr4ad_items"]
