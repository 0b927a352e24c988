"""The RQ-VAE's training against NumPy: loss, straight-through gradients, Adam, batches, restarts
that end in time.
"""

import math
import types

import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.sid import kmeans, rqvae

NUM, CONTENT, WIDTH, BOOKS = 14, 4, 3, (6, 5)


def scale_of(x):
  """Variance of the vectors, summed over their coordinates."""
  mean = sum(x) / len(x)
  return sum(float(((row - mean) ** 2).sum()) for row in x) / len(x)


def loss_and_slopes(params, x, scale):
  """Loss of a batch, its two parts, its gradients by hand, and the codes and residuals of each
  level.

  Straight through: the decoder's gradient goes to the latent as it is. A code is pulled to its
    residual by weight 1,
  the latent to its codes by weight .25, through the residuals, of which each is the latent less
  earlier codes.
  """
  enc, dec = params["encoder"], params["decoder"]
  slopes = {name: np.zeros_like(value) for name, value in flat(params).items()}
  rebuilt_loss, level_loss = 0.0, 0.0
  used, residuals = [[] for _ in BOOKS], [[] for _ in BOOKS]
  for row in x:
    pre = row @ enc["hidden"]["kernel"] + enc["hidden"]["bias"]
    hidden = np.maximum(pre, 0)
    z = hidden @ enc["out"]["kernel"] + enc["out"]["bias"]
    residual, total, to_z = z.copy(), np.zeros(WIDTH), np.zeros(WIDTH)
    for level, table in enumerate(params["codes"]):
      code = min(
        range(len(table)),
        key=lambda c, table=table, residual=residual: ((residual - table[c]) ** 2).sum(),
      )
      error = residual - table[code]
      used[level].append(code)
      residuals[level].append(residual)
      level_loss += 1.25 * (error**2).sum()
      slopes[f"codes/{level}"][code] += -2 * error
      to_z += 0.25 * 2 * error
      residual = error
      total = total + table[code]
    d_pre = total @ dec["hidden"]["kernel"] + dec["hidden"]["bias"]
    d_hidden = np.maximum(d_pre, 0)
    wrong = d_hidden @ dec["out"]["kernel"] + dec["out"]["bias"] - row
    rebuilt_loss += (wrong**2).sum()
    slopes["decoder/out/kernel"] += np.outer(d_hidden, 2 * wrong)
    slopes["decoder/out/bias"] += 2 * wrong
    back = (dec["out"]["kernel"] @ (2 * wrong)) * (d_pre > 0)
    slopes["decoder/hidden/kernel"] += np.outer(total, back)
    slopes["decoder/hidden/bias"] += back
    to_z = to_z + dec["hidden"]["kernel"] @ back
    slopes["encoder/out/kernel"] += np.outer(hidden, to_z)
    slopes["encoder/out/bias"] += to_z
    back = (enc["out"]["kernel"] @ to_z) * (pre > 0)
    slopes["encoder/hidden/kernel"] += np.outer(row, back)
    slopes["encoder/hidden/bias"] += back
  count = len(x) * scale
  return (
    (rebuilt_loss / count, level_loss / count),
    {k: v / count for k, v in slopes.items()},
    used,
    residuals,
  )


def flat(params):
  """Arrays of nested parameters by name; they share memory."""
  found = {}
  for part in ("encoder", "decoder"):
    for layer, leaves in params[part].items():
      found |= {f"{part}/{layer}/{name}": value for name, value in leaves.items()}
  return found | {f"codes/{level}": table for level, table in enumerate(params["codes"])}


class Told:
  """Keeps what a fit logs."""

  def __init__(self):
    self.lines = []

  def info(self, text, *values):
    self.lines.append(text % values)


def by_hand(x, params, steps, seed, batch, restart):
  """The whole of a training, in place of `params`; also the losses of each step and when codes
  started anew.
  """
  rng = np.random.default_rng(seed)
  rng.permutation(len(x))  # whose latents the codes started from
  values, scale = flat(params), scale_of(x)
  first = {name: np.zeros_like(value) for name, value in values.items()}
  second = {name: np.zeros_like(value) for name, value in values.items()}
  seen, losses, restarts = [set() for _ in BOOKS], [], []
  for step in range(steps):
    rows = rng.integers(len(x), size=batch)
    errors, slopes, used, residuals = loss_and_slopes(params, x[rows], scale)
    losses.append(errors)
    rate = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
    for name, slope in slopes.items():
      first[name] = 0.9 * first[name] + 0.1 * slope
      second[name] = 0.999 * second[name] + 0.001 * slope**2
      root = np.sqrt(second[name] / (1 - 0.999 ** (step + 1)))
      values[name] -= rate * first[name] / (1 - 0.9 ** (step + 1)) / (root + 1e-8)
    for level, codes in enumerate(used):
      seen[level] |= set(codes)
    if (step + 1) % restart == 0 and steps - (step + 1) >= restart:
      for level, table in enumerate(params["codes"]):
        order = rng.permutation(batch)
        idle = [code for code in range(len(table)) if code not in seen[level]]
        for nth, code in enumerate(idle):
          table[code] = residuals[level][order[nth % batch]]
        restarts.append((step, level, len(idle)))
        seen[level] = set()
  return losses, restarts


@pytest.mark.parametrize("batch", [3, 14])  # fewer residuals than idle codes, and a batch of all
def test_training_is_that_of_the_formulas(monkeypatch, batch):
  monkeypatch.setattr(rqvae, "RESTART", 4)
  monkeypatch.setattr(rqvae, "BATCH", batch if batch < NUM else 100)
  rng = np.random.default_rng(1)
  x = rng.normal(size=(NUM, CONTENT)) * [2, 1, 0.5, 1] + 0.3
  tables = [rng.normal(size=(size, WIDTH)).astype(np.float32) for size in BOOKS]
  tables[0][1:] += 40  # but one is out of reach, until they start anew
  tables[1][0] -= 30
  asked, start = [], {}
  first_step, steps = rqvae._train_step, 15

  def kmeans_of(points, size, **options):
    level = len(asked)
    asked.append((np.array(points), size, options))
    return tables[level].copy(), np.full(len(points), level + 1)

  def step_of(*arguments):
    if not start:
      params = arguments[3][0]
      for part in ("encoder", "decoder"):
        start[part] = {
          layer: {name: np.asarray(value, np.float64).copy() for name, value in leaves.items()}
          for layer, leaves in params[part].items()
        }
      start["codes"] = [np.asarray(table, np.float64).copy() for table in params["codes"]]
    return first_step(*arguments)

  monkeypatch.setattr(rqvae.kmeans, "balanced_kmeans", kmeans_of)
  monkeypatch.setattr(rqvae, "_train_step", step_of)
  told = Told()
  encoder, codes = rqvae.fit(x, BOOKS, width=WIDTH, steps=steps, seed=6, log=told)

  enc = start["encoder"]
  assert enc["hidden"]["kernel"].shape == (CONTENT, 2 * CONTENT)
  assert start["decoder"]["hidden"]["kernel"].shape == (WIDTH, 2 * CONTENT)
  some = x[np.random.default_rng(6).permutation(NUM)[: 16 * batch]]
  latents = (
    np.maximum(some @ enc["hidden"]["kernel"] + enc["hidden"]["bias"], 0) @ enc["out"]["kernel"]
  )
  np.testing.assert_allclose(asked[0][0], latents + enc["out"]["bias"], atol=1e-5)
  np.testing.assert_allclose(asked[1][0], asked[0][0] - tables[0][1], atol=1e-5)  # all had code 1
  assert [(size, options) for _, size, options in asked] == [
    (6, {"iterations": 5, "seed": 6}),
    (5, {"iterations": 5, "seed": 7}),
  ]

  losses, restarts = by_hand(x, start, steps, 6, batch, 4)
  assert [step for step, level, _ in restarts if level == 0] == [3, 7]  # 11 is within the last four
  assert sum(idle for _, _, idle in restarts) > 4 and restarts[0][2] >= 5
  for level, table in enumerate(codes):
    np.testing.assert_allclose(table, start["codes"][level], atol=3e-4)
  for name, value in encoder.params.items():
    np.testing.assert_allclose(value, flat(start)[f"encoder/{name}"], atol=3e-4)
  assert [line.split(":")[0] for line in told.lines] == [
    f"RQ-VAE step {n} of 15" for n in (1, 5, 9, 13, 15)
  ]
  for line, step in zip(told.lines, (0, 4, 8, 12, 14), strict=True):
    error, levels = (float(part.split()[1]) for part in line.split(": ")[1].split(", "))
    np.testing.assert_allclose((error, levels), losses[step], rtol=1e-2, atol=1e-3)


def test_the_settings_are_those_that_are_stated():
  """Of the head of the file: batches of 1,024, a restart each hundred steps, a commitment of a
  quarter.
  """
  assert (rqvae.BATCH, rqvae.RESTART, rqvae.COMMITMENT, rqvae.LEARNING_RATE) == (
    1024,
    100,
    0.25,
    1e-3,
  )


def test_vectors_are_encoded_by_chunks(monkeypatch):
  monkeypatch.setattr(rqvae, "CHUNK", 4)
  rng = np.random.default_rng(2)
  shapes = {"hidden/kernel": (3, 6), "hidden/bias": (6,), "out/kernel": (6, 2), "out/bias": (2,)}
  params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
  assert rqvae.expected_shapes(2, 3) == shapes
  x = rng.normal(size=(9, 3)).astype(np.float32)
  hidden = np.maximum(x @ params["hidden/kernel"] + params["hidden/bias"], 0)
  found = rqvae.Encoder(params)(x)
  np.testing.assert_allclose(found, hidden @ params["out/kernel"] + params["out/bias"], atol=1e-5)
  assert rqvae.Encoder(params)(x[:0]).shape == (0, 2) and found.dtype == np.float32


def test_equal_vectors_have_no_variance_to_divide_by():
  encoder, codes = rqvae.fit(np.ones((4, 3), np.float32), (2,), width=2, steps=1, seed=0)
  assert np.isfinite(codes[0]).all() and np.isfinite(encoder(np.ones((1, 3)))).all()


def test_quantising_weighs_the_two_pulls():
  z, table = jnp.float32([[1.0, 0.0]]), jnp.float32([[0.0, 0.0], [3.0, 0.0]])
  loss, coded, numbers, residuals = rqvae.quantize(z, [table, table + 0.5])
  assert numbers[0].tolist() == [0] and numbers[1].tolist() == [0]
  np.testing.assert_allclose(loss, [1.25 * 1 + 1.25 * 0.5])
  np.testing.assert_allclose(coded, [[0.5, 0.5]])
  np.testing.assert_allclose(residuals[1], [[1.0, 0.0]])


def test_codes_start_from_sixteen_batches_of_ads(monkeypatch):
  monkeypatch.setattr(rqvae, "BATCH", 2)
  given = []

  def recorded(points, size, **how):
    given.append(len(points))
    return kmeans.balanced_kmeans(points, size, **how)

  monkeypatch.setattr(rqvae, "kmeans", types.SimpleNamespace(balanced_kmeans=recorded))
  points = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
  rqvae._start(jnp.asarray(points), (3, 2), 4, 0, np.random.default_rng(1))
  assert given == [32, 32]
