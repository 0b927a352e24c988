"""What the references in NumPy are made of: maps of one vector or one list of them, in float64."""

import flax.linen as nn
import numpy as np

from gr4ad_jax.models import layers


def linear(p, x):
  """A kernel [in, out] and, where there is one, a bias."""
  y = np.asarray(x, np.float64) @ np.asarray(p["kernel"], np.float64)
  return y + p["bias"] if "bias" in p else y


def rms_norm(p, x):
  return x / np.sqrt(np.mean(x**2) + 1e-6) * np.asarray(p["scale"], np.float64)


def relu(x):
  return np.maximum(x, 0)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def softmax(x):
  weights = np.exp(x - np.max(x))
  return weights / weights.sum()


def attend(query_Hd, keys, values, bias_HS=None):
  """Attention of one query to a list of keys [G, d]; the heads of a group share them: [H·d]."""
  H, d = query_Hd.shape
  heads = []
  for h in range(H):
    group = h // (H // len(keys[0]))
    scores = np.array([query_Hd[h] @ key[group] / np.sqrt(d) for key in keys])
    weights = softmax(scores if bias_HS is None else scores + bias_HS[h])
    heads.append(sum(weight * value[group] for weight, value in zip(weights, values, strict=True)))
  return np.concatenate(heads)


def kept(*places):
  """What stands in for dropout's factors in these tests: of an element's place, from 0 to 2."""
  return sum((3 + 4 * axis) * place for axis, place in enumerate(places)) % 9 / 4


def keep_all(x, *places):
  """No dropout."""
  del places
  return x


def drop_known(x, *places):
  """Dropout of a vector at a known place.

  Args:
    x: [D].
    places: its indices along the axes before its own; 0 along an axis that shares a mask.
  """
  return x * kept(*places, np.arange(len(x)))


def known_dropout():
  """A context in which every dropout multiplies by `kept` of an element's place, nothing by chance.

  Where its rate is not `RATE` it spoils its input: else a wrong rate would not show.
  """

  def intercept(call, args, kwargs, context):
    module = context.module
    if not isinstance(module, (nn.Dropout, layers.Dropout)) or context.method_name != "__call__":
      return call(*args, **kwargs)
    (x,) = args
    if nn.merge_param("deterministic", module.deterministic, kwargs.get("deterministic")):
      return x
    shared = getattr(module, "broadcast_dims", ())
    shape = [1 if axis in shared else size for axis, size in enumerate(x.shape)]
    return (
      x
      * kept(*np.indices(shape, sparse=True)).astype(np.float32)
      * (1 if module.rate == RATE else 5)
    )

  return nn.intercept_methods(intercept)


RATE = 0.375  # of the models under test
