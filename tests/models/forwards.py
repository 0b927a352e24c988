"""All that a model of UA-SIDs computes, in one call; inputs in which a mistake shows."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from tests.models import numbers, tiny

VALUED = 3  # sequences of a request whose eCPM is scored, where not all are


def make_batch():
  """`tiny.make_batch` where one history repeats a UA-SID, next to it and further off."""
  batch = tiny.make_batch()
  codes = batch.slot_codes_BST.copy()
  codes[0, 2] = (codes[0, 1] + 1) % tiny.CODEBOOKS
  codes[1, 2] = codes[1, 1]
  codes[1, 4] = codes[1, 0]
  return batch._replace(slot_codes_BST=codes)


def make_codes(batch):
  """UA-SIDs to score, [B, 8, 3]: of slots of all kinds, and two that no slot has."""
  slots = batch.slot_codes_BST[:, [0, 3, 5, 6, 7, 9]]
  near = batch.slot_codes_BST[:, [1]].copy()
  near[..., -1] = (near[..., -1] + 1) % tiny.CODEBOOKS[-1]
  other = tiny.ALL_CODES[np.arange(len(slots))[:, None] * 31 + 17]
  return np.concatenate([slots, near, other], axis=1)


def make_params(model, bias=1.3):
  """Parameters that all differ; the edges of the features' pieces ascend, as fitted ones do."""
  params = tiny.make_params(model, seed=5, bias=bias)
  if model.config.copy != "off":
    params["copier"]["gate"]["bias"] += 1  # the copy path gets a good share
  for name in ("slot_edges", "user_edges"):
    if name in params.get("processor", ()):
      edges = params["processor"][name].reshape(-1, model.config.feature_bins + 1)
      params["processor"][name] = np.sort(2 * edges, axis=1).ravel()
  return params


def everything(model, batch, codes_BMT):
  """The forward, some sequences valued, and a search's way along the sequences: a dict."""
  B, M, T = codes_BMT.shape
  start = model.start(batch)
  some = {"valued": VALUED} if model.predicts_value else {}
  found = {"start": start, "outputs": model(batch, codes_BMT, **some)._asdict()}
  caches, found["h"], found["logits"] = None, [], []
  for level in range(T + 1):
    previous_BM = codes_BMT[..., level - 1] if level else jnp.full((B, M), 2)
    h_BMD, logits, caches = model.step(start, previous_BM, level, caches)
    found["h"].append(h_BMD)
    found["logits"].append(logits)
  found["value"] = model.value_logits(start, h_BMD, codes_BMT)
  found["final"] = model.final_logp(start, found["outputs"]["logp_BM"], codes_BMT)
  if hasattr(model, "copy_path"):
    found["copy"] = model.copy_path(start, found["h"][0][:, 0])
    found["seen"] = model.seen(start, codes_BMT)
  return found


def plain(model, batch, codes_BMT):
  """The forward as it is called without settings, and where more are valued than there are."""
  return model(batch, codes_BMT), model(batch, codes_BMT[:, :2], valued=5)


def training(model, batch, codes_BMT):
  """The forward with dropout."""
  return model(batch, codes_BMT, train=True, valued=VALUED)


def run(method, model, params, *inputs):
  """A function of a module on its parameters, compiled, with known dropout in place of chance."""
  with numbers.known_dropout():
    return tiny.jit(lambda p, *x: nn.apply(method, model)({"params": p}, *x))(params, *inputs)


def assert_close(found, expected):
  """To float32's precision, as these sizes have it."""
  np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


def assert_same_outputs(found, expected):
  """`Outputs`, as a dict, against the reference's."""
  assert found.keys() == expected.keys()
  for name, values in expected.items():
    assert found[name].shape == values.shape and found[name].dtype == np.float32, name
    np.testing.assert_allclose(found[name], values, rtol=2e-4, atol=2e-4, err_msg=name)


def assert_search_follows(found, requests, codes_BMT):
  """A search along given sequences has the reference's states, logits, eCPM and final score."""
  T = codes_BMT.shape[-1]
  for b, request in enumerate(requests):
    for m, codes in enumerate(codes_BMT[b]):
      states = request.states(codes)
      for level in range(T + 1):
        assert_close(found["h"][level][b, m], states[level])
        if level < T:
          assert_close(found["logits"][level][b, m], request.logits(level, states[level]))
      assert_close(found["value"][b, m], request.ecpm_logits(states[T], codes))
      assert_close(
        found["final"][b, m], request.final_logp(found["outputs"]["logp_BM"][b, m], codes)
      )
      assert found["seen"][b, m] == request.seen(codes)
    some = request.attention > 0
    assert_close(np.exp(found["copy"].log_gate_B[b]), request.gate)
    assert_close(np.exp(found["copy"].log_rest_B[b]), 1 - request.gate)
    assert_close(np.exp(found["copy"].log_attention_BS[b]), request.attention)
    assert (found["copy"].log_attention_BS[b][~some] < -1e6).all()
  assert found["logits"][T] is None
