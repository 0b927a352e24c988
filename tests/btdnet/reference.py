"""BTDNet's modules by loops in NumPy, float64, one image and one token at a time, from the
formulas of the papers.
"""

import math

import numpy as np
from scipy.special import erf

BIG = 1e4  # what keeps a masked key out


def linear(p, x):
  y = np.asarray(x, np.float64) @ np.asarray(p["kernel"], np.float64)
  return y + p["bias"] if "bias" in p else y


def layer_norm(p, x, epsilon=1e-5):
  x = np.asarray(x, np.float64)
  away = x - x.mean(-1, keepdims=True)
  return away / np.sqrt((away**2).mean(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def gelu(x):
  return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def softmax(x):
  weights = np.exp(x - np.max(x))
  return weights / weights.sum()


def mlp(p, x):
  return linear(p["down"], gelu(linear(p["up"], x)))


def self_attention(p, x_NC, heads, allowed=None, bias=None):
  """One set of tokens; allowed(i, j) tells whether i may read j, bias(h, i, j) is added."""
  N, C = x_NC.shape
  d = C // heads
  qkv = linear(p["qkv"], x_NC)
  out = np.zeros((N, C))
  for h in range(heads):
    q, k, v = (qkv[:, part * C + h * d : part * C + (h + 1) * d] for part in range(3))
    for i in range(N):
      scores = np.array([q[i] @ k[j] / math.sqrt(d) for j in range(N)])
      for j in range(N):
        scores[j] += bias(h, i, j) if bias else 0
        scores[j] -= 0 if allowed is None or allowed(i, j) else BIG
      out[i, h * d : (h + 1) * d] = softmax(scores) @ v
  return linear(p["out"], out)


def window_attention(p, x_HWC, heads, window, shifted):
  """Window by window on a padded map; a cell of a shifted map reads those of its own region."""
  H, W, C = x_HWC.shape
  sizes = [(n, 0) if n <= window else (window, window // 2 * shifted) for n in (H, W)]
  (rows, down), (cols, right) = sizes
  height, width = math.ceil(H / rows) * rows, math.ceil(W / cols) * cols
  padded = np.zeros((height, width, C))
  padded[:H, :W] = x_HWC
  table = np.asarray(p["bias_table"], np.float64).reshape(-1, heads)
  out = np.zeros((height, width, C))
  for top in range(0, height, rows):
    for left in range(0, width, cols):
      # places in the shifted map, and where each came from
      cells = [(top + i, left + j) for i in range(rows) for j in range(cols)]
      source = [((y + down) % height, (x + right) % width) for y, x in cells]

      def allowed(i, j, cells=cells, source=source):
        # Two cells of a window stood together unless one of them came round the map's edge.
        moved_y, moved_x = (source[i][a] - cells[i][a] for a in (0, 1))
        other_y, other_x = (source[j][a] - cells[j][a] for a in (0, 1))
        return moved_y == other_y and moved_x == other_x

      def bias(h, i, j, cells=cells):
        dy = cells[i][0] - cells[j][0] + rows - 1
        dx = cells[i][1] - cells[j][1] + cols - 1
        return table[dy * (2 * cols - 1) + dx, h]

      tokens = np.array([padded[place] for place in source])
      made = self_attention(p["attention"], tokens, heads, allowed, bias)
      for place, value in zip(source, made, strict=True):
        out[place] = value
  return out[:H, :W]


def swin_block(p, x_HWC, heads, window, shifted):
  x = x_HWC + window_attention(
    p["windows"], layer_norm(p["norm_before"], x_HWC), heads, window, shifted
  )
  return x + mlp(p["mlp"], layer_norm(p["norm_after"], x))


def patch_merging(p, x_HWC):
  H, W, C = x_HWC.shape
  out = np.zeros((math.ceil(H / 2), math.ceil(W / 2), 2 * C))
  for i in range(out.shape[0]):
    for j in range(out.shape[1]):
      four = np.zeros((4, C))
      for place, (down, right) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        if 2 * i + down < H and 2 * j + right < W:
          four[place] = x_HWC[2 * i + down, 2 * j + right]
      out[i, j] = linear(p["reduction"], layer_norm(p["norm"], four.ravel()))
  return out


def conv(p, x_HWC, stride=1, around=None):
  kernel = np.asarray(p["kernel"], np.float64)
  size = kernel.shape[0]
  around = size // 2 if around is None else around
  x = np.pad(x_HWC, ((around, around), (around, around), (0, 0)))
  H, W = ((n - size) // stride + 1 for n in x.shape[:2])
  out = np.zeros((H, W, kernel.shape[3]))
  for i in range(H):
    for j in range(W):
      patch = x[i * stride : i * stride + size, j * stride : j * stride + size]
      out[i, j] = np.tensordot(patch, kernel, 3) + p.get("bias", 0)
  return out


def bert_layer(p, x_NE, mask_N, heads):
  attended = self_attention(p["attention"], x_NE, heads, lambda i, j: mask_N[j])
  x = layer_norm(p["attention_norm"], x_NE + attended, 1e-12)
  return layer_norm(p["mlp_norm"], x + mlp(p["mlp"], x), 1e-12)


def bert(p, tokens_N, mask_N, layers, heads):
  x = np.stack([
    np.asarray(p["words"], np.float64)[t] + p["positions"][i] + p["kinds"][0]
    for i, t in enumerate(tokens_N)
  ])  # fmt: skip
  x = layer_norm(p["norm"], x, 1e-12)
  for i in range(layers):
    x = bert_layer(p[f"layer_{i}"], x, mask_N, heads)
  return x


def instance_norm(x_PC):
  away = x_PC - x_PC.mean(0)
  return away / np.sqrt((away**2).mean(0) + 1e-5)


def word_reader(p, x_PC, words_NE, mask_N, correlated, norm):
  """Base: K and U of masked words are 0 and (m - 1) 1e4 is added to their scores."""
  q, k, u = linear(p["query"], x_PC), linear(p["key"], words_NE), linear(p["value"], words_NE)
  q = q if correlated else instance_norm(q)
  k, u = k * mask_N[:, None], u * mask_N[:, None]
  read = np.zeros_like(q)
  for i in range(len(q)):
    scores = np.array([q[i] @ k[j] / math.sqrt(q.shape[1]) for j in range(len(k))])
    read[i] = softmax(scores + (mask_N - 1.0) * BIG) @ u
  if correlated:
    return read
  read = linear(p["out"], read)
  return instance_norm(read) if norm else read


def gated_fusion(p, x_PC, words_NE, mask_N, correlated, norm):
  g = word_reader(p["reader"], x_PC, words_NE, mask_N, correlated, norm)
  fused = gelu(linear(p["fuse"], gelu(linear(p["see"], x_PC)) * g))
  gate = np.tanh(linear(p["gate_out"], np.maximum(linear(p["gate_in"], fused), 0)))
  return x_PC + gate * fused, layer_norm(p["norm"], fused)


def pooled(x_HWC):
  H, W, _ = x_HWC.shape
  means = []
  for size in (1, 2, 4, 8):
    for i in range(size):
      rows = slice(i * H // size, math.ceil((i + 1) * H / size))
      for j in range(size):
        cols = slice(j * W // size, math.ceil((j + 1) * W / size))
        means.append(x_HWC[rows, cols].mean((0, 1)))
  return np.array(means)


def cross_attention(p, x_QC, y_KE, mask_K=None):
  q, k, v = linear(p["query"], x_QC), linear(p["key"], y_KE), linear(p["value"], y_KE)
  out = np.zeros_like(q)
  for i in range(len(q)):
    scores = np.array([q[i] @ k[j] / math.sqrt(q.shape[1]) for j in range(len(k))])
    if mask_K is not None:
      scores = scores - BIG * (1.0 - mask_K)
    out[i] = softmax(scores) @ v
  return linear(p["out"], out)


def vision_to_words(p, words_NE, x_HWC):
  read = cross_attention(p["read"], words_NE, pooled(x_HWC))
  return words_NE + math.tanh(p["gate"]) * layer_norm(p["norm"], read)


def resize(x_HWC, height, width):
  """Bilinear, no smoothing: for maps that grow."""
  H, W, C = x_HWC.shape
  out = np.zeros((height, width, C))
  for i in range(height):
    for j in range(width):
      y = np.clip((i + 0.5) * H / height - 0.5, 0, H - 1)
      x = np.clip((j + 0.5) * W / width - 0.5, 0, W - 1)
      top, left = int(y), int(x)
      for a, wa in ((top, 1 - (y - top)), (min(top + 1, H - 1), y - top)):
        for b, wb in ((left, 1 - (x - left)), (min(left + 1, W - 1), x - left)):
          out[i, j] += wa * wb * x_HWC[a, b]
  return out


def level(p, x_HWC, shallow_HWC):
  x = np.concatenate([resize(x_HWC, *shallow_HWC.shape[:2]), shallow_HWC], -1)
  for i in range(2):
    x = np.maximum(layer_norm(p[f"norm_{i}"], conv(p[f"conv_{i}"], x)), 0)
  return x


def head(p, x_HWC, height, width, subpixel):
  logits = linear(p["Linear_0"], x_HWC)
  if not subpixel:
    return resize(logits, height, width)
  channels = logits.shape[-1] // 16
  out = np.zeros((height, width, channels))
  for i in range(height):
    for j in range(width):
      cell = logits[i // 4, j // 4]
      out[i, j] = cell[((i % 4) * 4 + j % 4) * channels :][:channels]
  return out


def held_back(x_HWC, other_HW1):
  gate = 1 - sigmoid(other_HW1)
  return x_HWC * gate / max(gate.ravel())


def twin_decoder(p, maps, height, width, subpixel, shared=False):
  deep, *others = maps[::-1]
  back, target = deep, deep
  levels = []
  for i, shallow in enumerate(others):
    back = level(p[f"level_{i}" if shared else f"background_level_{i}"], back, shallow)
    target = level(p[f"level_{i}" if shared else f"target_level_{i}"], target, shallow)
    b, t = linear(p[f"background_gate_{i}"], back), linear(p[f"target_gate_{i}"], target)
    back, target = held_back(back, t), held_back(target, b)
    levels.append(np.concatenate([b, t], -1))
  heads = [
    head(p[f"{name}_head"], x, height, width, subpixel)
    for name, x in (("background", back), ("target", target))
  ]
  return np.concatenate(heads, -1), levels
