"""Log-probabilities of codes in pieces: those of all scores at once, with the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.models import level_heads
from gr4ad_jax.models.level_heads import LevelHead, code_logp, piece_of
from gr4ad_jax.models.outputs import next_code_logp
from gr4ad_jax.models.quantized import quantize
from gr4ad_jax.training import flops
from tests.models import tiny


def inputs(rows, codes, shared, seed=0, width=4):
  """States, kernel, bias, and `shared` codes a row; the scores reach far, so exp could overflow."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(rows, width)).astype(np.float32) * 20
  kernel = rng.normal(size=(width, codes)).astype(np.float32)
  bias = rng.normal(size=codes).astype(np.float32)
  return x, kernel, bias, rng.integers(0, codes, (rows, shared))


def by_hand(x, kernel, bias, code):
  """log softmax, one row and code at a time, in float64."""
  found = np.zeros(code.shape)
  for row, column in np.ndindex(code.shape):
    scores = x[row].astype(np.float64) @ kernel + bias
    top = scores.max()
    found[row, column] = scores[code[row, column]] - top - np.log(np.exp(scores - top).sum())
  return found


# Pieces that do and do not divide the codes; one code a piece; one piece of all.
@pytest.mark.parametrize(("codes", "piece"), [(12, 4), (11, 4), (7, 3), (5, 1), (6, 100)])
@pytest.mark.parametrize("shared", [1, 3])
def test_pieces_give_the_log_softmax(codes, piece, shared, monkeypatch):
  # Over several devices the codes of a piece stand apart: with one code a row that is tried.
  monkeypatch.setattr(jax, "device_count", lambda: 2 if shared == 1 else 1)
  x, kernel, bias, code = inputs(6, codes, shared)
  code[0] = codes - 1  # the last piece is the one that is filled up
  code[1] = 0
  found = code_logp(piece, x, kernel, bias, code)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, by_hand(x, kernel, bias, code), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("codes", "piece", "shared", "devices"), [(11, 4, 3, 1), (12, 5, 1, 2), (6, 8, 1, 1)]
)
def test_gradients_are_those_of_all_scores_at_once(codes, piece, shared, devices, monkeypatch):
  monkeypatch.setattr(jax, "device_count", lambda: devices)
  x, kernel, bias, code = inputs(6, codes, shared)
  x /= 20
  code[0] = code[0, 0]  # one code named thrice: its gradients add up
  weight = np.random.default_rng(1).normal(size=code.shape).astype(np.float32)

  def whole(x, kernel, bias):
    logits = x @ kernel + bias
    return (next_code_logp(logits if shared > 1 else logits[:, None], code) * weight).sum()

  def pieces(x, kernel, bias):
    return (code_logp(piece, x, kernel, bias, code) * weight).sum()

  expected = jax.grad(whole, (0, 1, 2))(x, kernel, bias)
  found = jax.grad(pieces, (0, 1, 2))(x, kernel, bias)
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_scores_of_all_codes_are_never_held():
  """Of the forward and the backward pass, in bfloat16: neither the scores nor their gradient."""
  rows, codes, piece = 32, 64, 8
  x, kernel, bias, code = inputs(rows, codes, 1)
  x, kernel = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)

  def sizes(run):
    jaxpr = jax.make_jaxpr(jax.grad(run, (0, 1, 2)))(x, kernel, bias).jaxpr
    return [aval.size for aval in _arrays(jaxpr) if aval.dtype == jnp.float32]

  plain = sizes(lambda x, k, b: next_code_logp((x @ k + b)[:, None], code).sum())
  cut = sizes(lambda x, k, b: code_logp(piece, x, k, b, code).sum())
  assert max(plain) == rows * codes
  assert max(cut) == rows * piece
  products = flops.matmuls_of(
    jax.grad(lambda x, k, b: code_logp(piece, x, k, b, code).sum(), (0, 1)), x, kernel, bias
  )
  assert {product[-1] for product in products} == {"bfloat16"}


def _arrays(jaxpr):
  """Whatever the equations of a program make, those of inner programs too."""
  for eqn in jaxpr.eqns:
    yield from (out.aval for out in eqn.outvars)
    for value in eqn.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from _arrays(inner)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4)])
def test_a_head_takes_states_of_a_request_and_of_its_sequences(shape):
  rng = np.random.default_rng(3)
  h = rng.normal(size=shape).astype(np.float32)
  code = rng.integers(0, 6, (2, 3))
  params = {
    "kernel": rng.normal(size=(4, 6)).astype(np.float32),
    "bias": rng.normal(size=6).astype(np.float32),
  }
  found = LevelHead(6, piece=4).apply({"params": params}, h, code, method="logp")
  states = np.broadcast_to(h if h.ndim == 3 else h[:, None], (2, 3, 4)).reshape(6, 4)
  expected = by_hand(states, params["kernel"], params["bias"], code.reshape(6, 1))
  np.testing.assert_allclose(found, expected.reshape(2, 3), rtol=1e-5, atol=1e-5)


def test_a_quantized_head_is_not_cut():
  rng = np.random.default_rng(4)
  h = rng.normal(size=(2, 3, 4)).astype(np.float32)
  code = rng.integers(0, 6, (2, 3))
  params = {"kernel": rng.normal(size=(4, 6)).astype(np.float32), "bias": np.ones(6, np.float32)}
  variables = quantize(params, "int8")
  cut, whole = (
    LevelHead(6, piece=piece).apply(variables, h, code, method="logp") for piece in (4, 0)
  )
  np.testing.assert_array_equal(cut, whole)


@pytest.mark.long
@pytest.mark.parametrize("remat", ["none", "dots"])
def test_a_model_in_pieces_is_the_model(remat):
  batch = tiny.make_batch()
  codes = batch.target_codes_BMT
  small = {"layers": 1, "lazy_layers": 0, "copy": "off", "feature_bins": 0}
  params = tiny.make_params(tiny.make_model(**small))

  def loss(model):
    def run(params):
      out = model.apply({"params": params}, batch, codes)
      return (out.logp_BM + 0.3 * out.mtp_logp_BMT.sum(-1)).mean(), out

    return jax.value_and_grad(run, has_aux=True)

  plain = loss(tiny.make_model(remat, **small))
  pieces = loss(tiny.make_model(remat, **small, head_piece=2))
  (_, expected), gradient = tiny.jit(plain)(params)
  (_, found), ours = tiny.jit(pieces)(params)
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
  for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(gradient), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
  # What is computed again is no work of the model: utilisation is a share of the same work.
  work = [
    flops.matmul_flops(flops.matmuls_in(jax.make_jaxpr(run)(params).jaxpr, recomputed=False))
    for run in (plain, pieces)
  ]
  # 5 codes in pieces of 2 are six: a code too many is scored, of level 1 alone.
  assert work[0] <= work[1] < 1.05 * work[0]


def test_a_head_in_pieces_has_the_parameters_of_a_whole_one():
  h = np.ones((2, 3, 4), np.float32)
  code = np.zeros((2, 3), np.int32)
  whole, cut = (
    LevelHead(6, piece=piece).init(jax.random.key(0), h, code, method="logp") for piece in (0, 4)
  )
  assert jax.tree.structure(whole) == jax.tree.structure(cut)
  jax.tree.map(np.testing.assert_array_equal, whole, cut)


def test_nothing_changes_on_a_cpu_unless_it_is_asked_for():
  assert (piece_of(0), piece_of(7)) == (0, 7)
  assert not LevelHead(6, piece=6).in_pieces and LevelHead(7, piece=6).in_pieces


def test_few_rows_have_all_codes_in_one_piece(monkeypatch):
  """On an accelerator a piece has as many scores as are held at once, whatever the rows."""
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  monkeypatch.setattr(level_heads, "_SCORES", 4 * 128)
  asked = []

  def code_logp(piece, *given):
    asked.append(piece)
    return given[-1]

  monkeypatch.setattr(level_heads, "code_logp", code_logp)
  params = {"kernel": np.ones((4, 300), np.float32), "bias": np.ones(300, np.float32)}
  for rows in (1, 2, 4, 100):
    head = LevelHead(300, piece=piece_of(0))
    head.apply({"params": params}, np.ones((rows, 1, 4)), np.zeros((rows, 1), int), method="logp")
  assert asked == [512, 256, 128, 128]
