"""What each output may depend on, and what neither dtype nor rematerialisation may change."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.models import remat
from gr4ad_jax.models.context import EDGES, Context
from gr4ad_jax.models.history_copy import ValueReader
from gr4ad_jax.models.lazy_decoder import LazyDecoder
from gr4ad_jax.models.outputs import compute_dtype, next_code_logp
from gr4ad_jax.objectives import vsl
from tests.models import tiny

LOGITS = ("head_0", "head_1", "head_2", "ecpm_head", "score", "gate")


def forward(model):
  return tiny.jit(lambda p, b, c: model.apply({"params": p}, b, c))


@pytest.fixture(scope="module")
def system():
  model = tiny.make_model(kv_groups=2, kv_layers=2)
  return forward(model), tiny.make_params(model), tiny.make_batch()


@pytest.fixture(scope="module")
def everything(system):
  run, params, batch = system
  return jax.device_get(run(params, batch, tiny.every_code(batch)))


def test_a_levels_distribution_knows_the_codes_before_it_alone(everything):
  p = np.exp(everything.generated_logp_BMT).reshape(4, *tiny.CODEBOOKS, 3)
  assert np.ptp(p[..., 0], axis=(2, 3)).max() < 1e-6 and np.ptp(p[..., 1], axis=3).max() < 1e-6
  np.testing.assert_allclose(p[:, :, 0, 0, 0].sum(1), 1, atol=1e-5)
  np.testing.assert_allclose(p[:, :, :, 0, 1].sum(2), 1, atol=1e-5)
  np.testing.assert_allclose(p[..., 2].sum(3), 1, atol=1e-5)
  assert (
    np.ptp(p[:, :, :, 0, 1], axis=1).max() > 1e-3 and np.ptp(p[..., 2], axis=(1, 2)).max() > 1e-3
  )


def test_mtp_branch_sees_no_code(everything):
  p = np.exp(everything.mtp_logp_BMT).reshape(4, *tiny.CODEBOOKS, 3)
  for level, others in enumerate(((2, 3), (1, 3), (1, 2))):
    alone = p[..., level]
    assert np.ptp(alone, axis=others).max() < 1e-6
    np.testing.assert_allclose(alone.mean(axis=others).sum(1), 1, atol=1e-5)


def test_ecpm_token_knows_every_code(everything):
  logits = everything.ecpm_logits_BMV.reshape(4, *tiny.CODEBOOKS, -1)
  assert all(np.ptp(logits, axis=axis).max() > 1e-3 for axis in (1, 2, 3))


def test_the_value_of_an_ad_reads_the_slots_that_carry_it_and_no_others():
  rng = np.random.default_rng(4)
  h, slots = (rng.normal(size=(2, n, 6)).astype(np.float32) for n in (3, 4))
  match = np.zeros((2, 3, 4), bool)
  match[0, 0, [1, 3]] = match[1, 2, 0] = True
  reader = ValueReader()
  params = tiny.draw_params(reader, h, slots, match)
  read = np.zeros_like(h)
  read[0, 0], read[1, 2] = slots[0, [1, 3]].mean(axis=0), slots[1, 0]
  state, slot, out = (params[name] for name in ("state", "slot", "out"))
  hidden = np.maximum(h @ state["kernel"] + state["bias"] + read @ slot["kernel"], 0)
  found = reader.apply({"params": params}, h, slots, match)
  np.testing.assert_allclose(found, h + hidden @ out["kernel"], atol=1e-5)


@pytest.mark.parametrize("lazy", [0, 1])
def test_decoder_state_has_no_gradient_from_later_tokens(lazy):
  config = tiny.make_model(layers=lazy + 1, lazy_layers=lazy).config
  decoder, (B, M, T, D) = LazyDecoder(config, 4), (1, 2, 4, config.width)
  context = _context(B, D, config)
  rng = np.random.default_rng(8)
  m_B1TD, tokens = (rng.normal(size=s).astype(np.float32) for s in ((B, 1, T, D), (B, M, T, D)))
  variables = {"params": tiny.draw_params(decoder, m_B1TD, tokens, context, train=False)}
  summed = lambda x: decoder.apply(variables, m_B1TD, x, context, train=False)[0].sum(-1)  # noqa: E731
  jacobian = tiny.jit(jax.jacrev(summed))(tokens)
  reach = np.abs(jacobian).max(axis=-1)[0, :, :, 0]  # (M, T) of states by (M, T) of tokens
  for state in range(T):
    assert (reach[0, state, 0, : state + 1] > 1e-6).all() and (
      reach[0, state, 0, state + 1 :] == 0
    ).all()
  assert (reach[0, :, 1] == 0).all()  # nor do sequences read each other


def _context(B, D, config):
  rng = np.random.default_rng(9)
  shape = (B, 5, config.kv_groups, D // config.heads)
  keys = tuple(rng.normal(size=shape).astype(np.float32) for _ in range(config.kv_layers))
  return Context(keys, keys, np.ones((B, 5), bool), np.zeros((B, 4, D), np.float32))


def test_lazy_layers_have_no_gradient_from_any_code():
  model, batch = tiny.make_model(), tiny.make_batch()
  batch = batch._replace(
    slot_codes_BST=np.zeros_like(batch.slot_codes_BST)
  )  # only code 0 stands in the context
  params = tiny.make_params(model)
  size = lambda p: (model.apply({"params": p}, batch, method="start").lazy_B1TD ** 2).sum()  # noqa: E731
  grads = jax.device_get(tiny.jit(jax.grad(size))(params))
  for level in range(3):
    table = np.asarray(grads[f"codes_{level}"])
    assert (table[1:] == 0).all() and (table[0] != 0).any()
  assert (grads["bos"] == 0).all() and (grads["decoder"]["level"] != 0).all()
  assert all(
    (g == 0).all() for g in jax.tree.leaves([grads["decoder"]["fuse"], grads["decoder"]["block_2"]])
  )
  assert all(
    (g != 0).any()
    for g in jax.tree.leaves([grads["decoder"]["block_0"], grads["decoder"]["block_1"]])
  )


def test_sequences_of_a_request_do_not_read_each_other(system, everything):
  run, params, batch = system
  shuffled = np.random.default_rng(3).permutation(140)
  out = run(params, batch, tiny.every_code(batch)[:, shuffled])
  np.testing.assert_allclose(out.logp_BM, everything.logp_BM[:, shuffled], atol=1e-5)


@pytest.mark.parametrize("field", ["slot_codes_BST", "slot_features_BSF"])
def test_padding_slots_change_nothing(system, everything, field):
  run, params, batch = system
  padding = (batch.slot_kind_BS == 0)[..., None]
  old = getattr(batch, field)
  for hidden, same in ((padding, True), (~padding, False)):
    new = np.where(hidden, (old + 1) % 4, old).astype(old.dtype)
    out = jax.device_get(run(params, batch._replace(**{field: new}), tiny.every_code(batch)))
    gap = max(np.abs(x - y).max() for x, y in zip(out, everything, strict=True))
    assert gap < 1e-6 if same else gap > 1e-2


def test_targets_are_not_read(system, everything):
  run, params, batch = system
  other = batch._replace(
    target_codes_BMT=0 * batch.target_codes_BMT,
    target_mask_BM=~batch.target_mask_BM,
    target_value_BM=batch.target_value_BM + 5,
    target_depth_BM=batch.target_depth_BM + 1,
    user_value_B=batch.user_value_B + 1,
  )
  chex.assert_trees_all_equal(
    jax.device_get(run(params, other, tiny.every_code(batch))), everything
  )


def test_only_the_history_is_copied_where_so_asked(everything):
  batch = tiny.make_batch()
  model = tiny.make_model(layers=1, lazy_layers=0, copy="history")
  out = jax.device_get(forward(model)(tiny.make_params(model), batch, tiny.every_code(batch)))
  for found, kinds in ((out, (1,)), (everything, (1, 2, 3))):
    copied = np.exp(found.logp_BM) - (1 - found.gate_B)[:, None] * np.exp(
      found.generated_logp_BMT.sum(-1)
    )
    for b in range(4):
      named = {
        tuple(code)
        for code in batch.slot_codes_BST[b, np.isin(batch.slot_kind_BS[b], kinds)].tolist()
      }
      assert {tuple(code) for code in tiny.ALL_CODES[copied[b] > 1e-6].tolist()} <= named
      np.testing.assert_allclose(copied[b].sum(), found.gate_B[b] if named else 0, atol=1e-5)
      assert (found.gate_B[b] > 0.01) == bool(named)


def _loss(model):
  def loss(params, batch):
    rngs = {"dropout": jax.random.key(4)}
    out = model.apply({"params": params}, batch, batch.target_codes_BMT, train=True, rngs=rngs)
    return _loss_of(out, batch)

  return loss


def _loss_of(out, batch):
  """VSL of the first sequences of each request, as though they were its targets."""
  M = batch.target_mask_BM.shape[1]
  bins = vsl.ecpm_bin(batch.target_value_BM, jnp.arange(4.0))
  ones = jnp.ones_like(batch.target_value_BM)
  return vsl.vsl_loss(
    out.logp_BM[:, :M],
    out.mtp_logp_BMT[:, :M],
    out.ecpm_logits_BMV[:, :M],
    bins,
    ones,
    batch.target_mask_BM,
    lambda_ecpm=0.3,
    lambda_mtp=0.2,
  )[0]


@pytest.mark.long
@pytest.mark.parametrize("policies", [("none", "full"), ("none", "dots")])
def test_rematerialisation_changes_neither_loss_nor_gradients_nor_parameters(policies):
  batch = tiny.make_batch()
  models = [tiny.make_model(layers=1, lazy_layers=0, remat=policy) for policy in policies]
  params = tiny.make_params(models[0])
  (loss, grads), *others = (
    tiny.jit(jax.value_and_grad(_loss(model)))(params, batch) for model in models
  )
  for model, (loss_again, grads_again) in zip(models[1:], others, strict=True):
    chex.assert_trees_all_equal(params, tiny.make_params(model))
    np.testing.assert_allclose(loss, loss_again, rtol=1e-6)
    chex.assert_trees_all_close(grads, grads_again, rtol=1e-4, atol=1e-6)
  fitted = [grads["processor"].pop(name) for name in EDGES]
  assert not any(leaf.any() for leaf in fitted)
  assert all(
    (np.asarray(leaf) != 0).any() for leaf in jax.tree.leaves(grads)
  )  # all other parameters learn


def test_what_xla_is_told_of_a_policy(monkeypatch):
  for backend, told in (("cpu", 1), ("tpu", 0)):
    monkeypatch.setattr(jax, "default_backend", lambda backend=backend: tiny.fresh(backend))
    options = [remat.compiler_options(tiny.fresh(policy)) for policy in ("none", "dots", "full")]
    assert [len(each) for each in options] == [0, told, told]


def test_the_compute_dtype_is_as_asked_or_the_devices(monkeypatch):
  names = ("auto", "float32", "bfloat16")
  asked = [tiny.make_model(compute_dtype=tiny.fresh(name)).config for name in names]
  for backend, auto in (("cpu", "float32"), ("tpu", "bfloat16")):
    monkeypatch.setattr(jax, "default_backend", lambda backend=backend: tiny.fresh(backend))
    assert [str(compute_dtype(config)) for config in asked] == [auto, "float32", "bfloat16"]


@pytest.mark.long
def test_each_policy_keeps_less_than_the_one_before():
  B, M, T, S, D = 32, 16, 4, 8, 32
  config = dataclasses.replace(tiny.CONFIG, layers=4, lazy_layers=0, width=D, heads=2, kv_groups=2)
  keys, h = jnp.ones((B, S, 2, D // 2)), jnp.ones((B, M, T, D))
  context = Context((keys,), (keys,), jnp.ones((B, S), bool), h[:, 0])
  sizes = []
  for policy in remat.POLICIES:
    decoder = LazyDecoder(config, T, policy)

    def loss(params, h, decoder=decoder):
      return decoder.apply({"params": params}, h, context, train=False, method="late")[0].sum()

    params = tiny.draw_params(decoder, h, context, train=False, method="late")
    options = {"xla_backend_optimization_level": 0} | remat.compiler_options(policy)
    sizes.append(
      jax.jit(jax.grad(loss)).lower(params, h).compile(options).memory_analysis().temp_size_in_bytes
    )
  none, dots, full = sizes
  assert dots < 0.8 * none and full < 0.8 * dots, sizes


@pytest.fixture(scope="module")
def in_bfloat16():
  """Of a bfloat16 model: outputs, loss, and what the modules named `LOGITS` give."""
  model = tiny.make_model(kv_groups=2, kv_layers=2, compute_dtype="bfloat16")
  batch = tiny.make_batch()

  def run(params, batch, codes):
    how = {"capture_intermediates": lambda module, _: module.name in LOGITS}
    out, found = model.apply({"params": params}, batch, codes, **how)
    return out, _loss_of(out, batch), found["intermediates"]

  return jax.device_get(tiny.jit(run)(tiny.make_params(model), batch, tiny.every_code(batch)))


def test_bfloat16_gives_float32_outputs_close_to_float32(everything, in_bfloat16):
  out, loss, _ = in_bfloat16
  assert {str(x.dtype) for x in out} == {"float32"}
  assert 0 < np.abs(out.logp_BM - everything.logp_BM).mean() < 0.1
  assert loss.dtype == jnp.float32 and np.isfinite(loss)


def test_next_code_logp_is_the_softmax_of_its_level():
  logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32) * 30
  code = np.array([[0, 4, 2], [1, 1, 3]])
  exact = logits.astype(np.float64)
  exact = np.take_along_axis(
    exact - np.log(np.exp(exact).sum(-1, keepdims=True)), code[..., None], -1
  )[..., 0]
  np.testing.assert_allclose(tiny.jit(next_code_logp)(logits, code), exact, rtol=1e-5, atol=1e-5)


def test_logits_of_a_bfloat16_model_are_float32(in_bfloat16):
  found = dict(in_bfloat16[2])
  found |= found.pop("copier")  # score and gate
  for name in LOGITS:
    logits = found[name]["__call__"][0]
    assert logits.dtype == jnp.float32
    assert (logits != logits.astype(jnp.bfloat16)).any(), name
