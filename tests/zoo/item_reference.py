"""NumPy forwards of the models of single ads, one request at a time, loops over places, heads and
ads.

Written from the formulas: SASRec (arXiv:1808.09781, section 3), HSTU (arXiv:2402.17152, equations 1
  to 3), two towers
(Yi et al., RecSys 2019), DIN (arXiv:1706.06978) and DCN-v2 (arXiv:2008.13535). Nothing here calls
the code under test.

Arrays are float64. Parameters are a model's, as nested dicts. A request is a row of a batch: `ads`
are its history's, oldest first, -1 in padding. `drop(path, call, x, *place)` is what a dropout
layer does to x: the layer's path in the model, the number of its calls before, and which part of a
request x is where it is not all of it.
"""

import numpy as np


def keep(path, call, x, *place):
  """Dropout outside of the training."""
  del path, call, place
  return x


def linear(p, x):
  """x W + b, without b where the layer has none."""
  return x @ np.float64(p["kernel"]) + np.float64(p.get("bias", 0.0))


def rms(p, x):
  """x over its root mean square, scaled; of one vector or of several."""
  out = np.empty_like(x)
  for place in np.ndindex(*x.shape[:-1]):
    out[place] = x[place] / np.sqrt(np.mean(x[place] ** 2) + 1e-6) * p["scale"]
  return out


def relu(x):
  return np.where(x > 0, x, 0.0)


def silu(x):
  return x / (1 + np.exp(-x))


def unit(x):
  return x / np.sqrt((x**2).sum() + 1e-12)


def attention(q_PD, k_SD, v_SD, sees, heads):
  """Softmax attention; place i reads the places j for which `sees(i, j)`; zeros where it sees
  none. [P, D].
  """
  out, d = np.zeros_like(q_PD), q_PD.shape[1] // heads
  for i in range(len(q_PD)):
    seen = [j for j in range(len(k_SD)) if sees(i, j)]
    for h in range(heads if seen else 0):
      part = slice(h * d, (h + 1) * d)
      weight = np.exp([q_PD[i, part] @ k_SD[j, part] / np.sqrt(d) for j in seen])
      out[i, part] = (
        sum(w * v_SD[j, part] for w, j in zip(weight, seen, strict=True)) / weight.sum()
      )
  return out


def real_places(ads):
  """Whether a place is one that others may read: the start token and the ads."""
  return [True, *(ad >= 0 for ad in ads)]


def entered(p, start, ads, drop):
  """The start token and the ads' vectors times sqrt(D), places added, dropped: [S + 1, D]."""
  table = np.float64(p["items"])
  rows = [np.float64(p[start])]
  for ad in ads:
    rows.append(table[ad] * np.sqrt(table.shape[1]) if ad >= 0 else np.zeros(table.shape[1]))
  return drop("dropout", 0, np.stack(rows) + p["places"]["table"])


def sasrec_block(p, name, x_PD, sees, heads, drop):
  """Pre-normed attention and a feed-forward of two layers, each dropped and added to what came
  in.
  """
  p, layer = p[name], f"{name}/Dropout_0"
  q, k, v = np.split(linear(p["qkv"], rms(p["attention_norm"], x_PD)), 3, axis=1)
  x_PD = x_PD + drop(layer, 0, linear(p["attention_out"], attention(q, k, v, sees, heads)))
  hidden = drop(layer, 1, relu(linear(p["ffn_in"], rms(p["ffn_norm"], x_PD))))
  return x_PD + drop(layer, 2, linear(p["ffn_out"], hidden))


def sasrec(p, ads, heads, layers, drop=keep):
  """States of a start token and the history: [S + 1, D]."""
  real = real_places(ads)
  x = entered(p, "bos", ads, drop)
  for i in range(layers):
    x = sasrec_block(p, f"block_{i}", x, lambda i, j: j <= i and real[j], heads, drop)
  return rms(p["norm"], x)


def encoder(p, ads, heads, layers, causal, known, drop=keep):
  """States of the encoder of gr4ad_items; ads from row `known` on have no vector and are not
  seen.
  """
  ads = [ad if ad < known else -1 for ad in ads]
  real = real_places(ads)
  x = entered(p, "first", ads, drop)
  for i in range(layers):
    x = sasrec_block(
      p, f"encoder_{i}", x, lambda i, j: (j <= i or not causal) and real[j], heads, drop
    )
  return rms(p["encoder_norm"], x)


def hstu(p, ads, days, heads, layers, drop=keep):
  """States of HSTU; `days` [S] lie between each ad and the request, and the start token stands
  where the first does.
  """
  real, days = real_places(ads), [days[0], *days]
  x = entered(p, "bos", ads, drop)
  P, D = x.shape
  d = D // heads
  for number in range(layers):
    layer = p[f"block_{number}"]
    u, v, q, k = np.split(silu(linear(layer["uvqk"], rms(layer["in_norm"], x))), 4, axis=1)
    read = np.zeros((P, D))
    for i in range(P):
      for j in range(i + 1):
        if not real[j]:
          continue
        hours = 24 * max(days[j] - days[i], 0.0)
        bucket = min(int(5 * np.log(1 + hours)), 63)
        bias = layer["bias"]["place"][i - j] + layer["bias"]["time"][bucket]
        for h in range(heads):
          part = slice(h * d, (h + 1) * d)
          read[i, part] += silu(q[i, part] @ k[j, part] + bias) / P * v[j, part]
    x = x + drop(
      f"block_{number}/Dropout_0", 0, linear(layer["out"], rms(layer["read_norm"], read) * u)
    )
  return rms(p["norm"], x)


def user_tower(p, ads, slot_features, user_features, heads, drop=keep):
  """The user's vector, of length 1: [D]."""
  D = p["items"].shape[1]
  user = relu(linear(p["user_in"], np.float64(user_features)))
  vectors = [np.float64(p["items"][ad]) if ad >= 0 else np.zeros(D) for ad in ads]
  about = np.concatenate([vectors, np.float64(slot_features)], axis=1)
  both = linear(p["slot_kv"], drop("dropout", 0, relu(linear(p["slot_in"], about))))
  keys, values = both[:, :D], both[:, D:]
  read = attention(linear(p["query"], user)[None], keys, values, lambda _, j: ads[j] >= 0, heads)[0]
  taken = [j for j, ad in enumerate(ads) if ad >= 0]
  mean = sum((values[j] for j in taken), np.zeros(D)) / max(len(taken), 1)
  hidden = relu(linear(p["user_hidden"], np.concatenate([user, read, mean])))
  return unit(linear(p["user_out"], drop("dropout", 1, hidden)))


def ad_tower(p, ad):
  """An ad's vector, of length 1 over the temperature: [D]."""
  own = np.float64(p["items"][ad])
  return unit(linear(p["ad_out"], relu(linear(p["ad_hidden"], own))) + own) / 0.07


def pieces(x, edges):
  """How far a number passes each of its pieces, 0 to 1; pieces without width are never passed:
  [F, Q + 1] -> [F Q].
  """
  out = []
  for number, ends in zip(x, edges, strict=True):
    for low, high in zip(ends[:-1], ends[1:], strict=True):
      out.append(min(max((number - low) / (high - low), 0.0), 1.0) if high - low > 1e-6 else 0.0)
  return np.array(out)


def ranker_embed(p, codes, row, num_ads, dropped):
  """An ad by its codes, and by its own vector where it has one that is not dropped: [D]."""
  x = sum(np.float64(p[f"codes_{t}"][code]) for t, code in enumerate(codes))
  if "ids" in p and 0 <= row < num_ads and not dropped:
    buckets = len(p["ids"]) - 1  # the first row stands for no ad
    x = x + p["ids"][1 + row % buckets]
  return x


def ranker(
  p, pairs, b, edges, num_ads, heads, crosses, drop=keep, dropped=lambda kind, place: False
):
  """Logit of p(purchase) and log of E[value | purchase] of the ads of request b: [C] each."""
  user = linear(p["user_in"], pieces(pairs.user_features_BF[b], edges["user"]))
  slots = [linear(p["null_slot"], relu(user))]
  for s, row in enumerate(pairs.slot_row_BS[b]):
    if row >= 0:
      own = ranker_embed(p, pairs.slot_codes_BST[b, s], row, num_ads, dropped("slot", (b, s)))
      slots.append(linear(p["slot_in"], np.concatenate([own, pairs.slot_features_BSF[b, s]])))
  keys, values = np.split(np.stack(slots), 2, axis=1)
  logits, log_values = [], []
  for c, row in enumerate(pairs.ad_row_BC[b]):
    ad = ranker_embed(p, pairs.ad_codes_BCT[b, c], row, num_ads, dropped("ad", (b, c)))
    read = attention(linear(p["query"], ad)[None], keys, values, lambda *_: True, heads)[0]
    x = linear(p["pair_in"], pieces(pairs.pair_features_BCF[b, c], edges["pair"])) + user
    x = x + linear(p["ad_in"], ad) + linear(p["read_in"], np.concatenate([read, read * ad]))
    x = crossed = rms(p["norm"], x)
    for i in range(crosses):
      crossed = x * linear(p[f"crosses_{i}"], crossed) + crossed
    hidden = drop("dropout", 0, relu(linear(p["deep_0"], x)), c)
    both = drop("dropout", 1, np.concatenate([crossed, relu(linear(p["deep_1"], hidden))]), c)
    logits.append(linear(p["purchase_out"], both)[0])
    log_values.append(
      linear(p["value_out"], relu(linear(p["value_deep"], rms(p["value_norm"], both))))[0]
    )
  return np.array(logits), np.array(log_values)
