"""A BERT by its published names: made-up tensors, their file, and an independent forward."""

import numpy as np
from scipy.special import erf


def bert_tensors(size, seed=0):
  """Hugging Face's names."""
  rng = np.random.default_rng(seed)
  shapes = {
    "embeddings.word_embeddings.weight": (size.vocab, size.width),
    "embeddings.position_embeddings.weight": (size.positions, size.width),
    "embeddings.token_type_embeddings.weight": (size.kinds, size.width),
    "embeddings.LayerNorm.weight": (size.width,), "embeddings.LayerNorm.bias": (size.width,),
    "pooler.dense.weight": (size.width, size.width),
  }  # fmt: skip
  for i in range(size.layers):
    for name, out, into in (
      ("attention.self.query", size.width, size.width),
      ("attention.self.key", size.width, size.width),
      ("attention.self.value", size.width, size.width),
      ("attention.output.dense", size.width, size.width),
      ("intermediate.dense", size.hidden, size.width),
      ("output.dense", size.width, size.hidden),
    ):
      shapes[f"encoder.layer.{i}.{name}.weight"] = (out, into)
      shapes[f"encoder.layer.{i}.{name}.bias"] = (out,)
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
      shapes[f"encoder.layer.{i}.{name}.weight"] = (size.width,)
      shapes[f"encoder.layer.{i}.{name}.bias"] = (size.width,)
  made = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
  return made | {"embeddings.position_ids": np.arange(size.positions)[None]}


def bert_forward(tensors, tokens, layers, heads):
  """BERT from its published tensors, [out, in] kernels, one text, float64."""
  t = {name: np.asarray(x, np.float64) for name, x in tensors.items()}

  def dense(name, x):
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

  def norm(name, x):
    away = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((away**2).mean(-1, keepdims=True) + 1e-12)
    return away / deviation * t[f"{name}.weight"] + t[f"{name}.bias"]

  x = t["embeddings.word_embeddings.weight"][tokens]
  x = x + t["embeddings.position_embeddings.weight"][: len(tokens)]
  x = norm("embeddings.LayerNorm", x + t["embeddings.token_type_embeddings.weight"][0])
  for i in range(layers):
    at = f"encoder.layer.{i}"
    q, k, v = (dense(f"{at}.attention.self.{n}", x) for n in ("query", "key", "value"))
    d = x.shape[1] // heads
    read = np.zeros_like(x)
    for h in range(heads):
      own = slice(h * d, (h + 1) * d)
      scores = q[:, own] @ k[:, own].T / np.sqrt(d)
      share = np.exp(scores - scores.max(-1, keepdims=True))
      read[:, own] = share / share.sum(-1, keepdims=True) @ v[:, own]
    x = norm(f"{at}.attention.output.LayerNorm", x + dense(f"{at}.attention.output.dense", read))
    inner = dense(f"{at}.intermediate.dense", x)
    inner = inner * 0.5 * (1 + erf(inner / np.sqrt(2)))
    x = norm(f"{at}.output.LayerNorm", x + dense(f"{at}.output.dense", inner))
  return x


def save(path, tensors):
  import safetensors.numpy

  safetensors.numpy.save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)
  return str(path)
