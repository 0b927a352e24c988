"""The zoo's models of UA-SIDs in NumPy: what each changes of GR4AD's reference, and TIGER."""

import math

import numpy as np

from gr4ad_jax.features.batches import HISTORY
from tests.models.numbers import attend, keep_all, linear, relu, rms_norm, softmax
from tests.models.reference import Request
from tests.zoo.item_reference import encoder


class ChainRequest(Request):
  """DeepSeek's MTP modules: M_k [ norm(h^(k-1)) ; norm(e(s_k)) ], then a block on that state
  alone.
  """

  def lazy(self):
    T, h = self.levels, [self.params["decoder"]["first"]]
    for layer in range(self.config.layers - T + 1):
      h = self.block(layer, h)
    return h * (T + 1)

  def states(self, codes):
    p, T = self.params["decoder"], self.levels
    h, out = self.m[0], []
    for level, token in enumerate(self.tokens(codes)):
      if level > 0:
        normed = rms_norm(p[f"state_norm_{level}"], h), rms_norm(p[f"code_norm_{level}"], token)
        h = linear(p[f"join_{level}"], np.concatenate(normed))
        if level < T:  # the eCPM token has no block
          (h,) = self.block(self.config.layers - T + level, [h])
      out.append(rms_norm(p["out_norm"], h))
    return out

  def free_states(self):
    return [rms_norm(self.params["decoder"]["out_norm"], h) for h in self.m]


class ParallelRequest(Request):
  """All layers without tokens: the states are the same for all sequences."""

  def lazy(self):
    m = list(self.params["decoder"]["level"])
    for layer in range(self.config.layers):
      m = self.block(layer, m)
    return [rms_norm(self.params["decoder"]["out_norm"], h) for h in m]

  def states(self, codes):
    return self.m

  def free_states(self):
    return self.m


class ItemsRequest(Request):
  """`gr4ad_items`: slots carry vectors of ads and the encoder's states; heads read its last one."""

  def __init__(self, model, params, batch, b):
    c, known = model.config, model.num_ads
    kinds, slot_ads = batch.slot_kind_BS[b], batch.slot_ad_BS[b]
    past = [ad if kind == HISTORY else -1 for ad, kind in zip(slot_ads, kinds, strict=True)]
    states = encoder(params, past, c.heads, c.encoder_layers, c.encoder_causal, known)
    extra = np.zeros((len(past), c.width))
    for s, ad in enumerate(slot_ads):
      if 0 <= ad < known:
        extra[s] += np.sqrt(c.width) * params["items"][ad]
      if past[s] >= 0:
        extra[s] += states[s + 1]
    last = states[sum(ad >= 0 for ad in past)]  # ads that came after the training count
    super().__init__(model, params, batch, b, extra_SD=extra, skip_D=last)

  @property
  def bias(self):
    return 0.0  # it is the head's


def bucket(distance):
  """T5's bucket of key minus query: 16 for either direction, 8 of them exact, up to 128 away."""
  away = abs(distance)
  if away < 8:
    near = away
  else:
    near = min(8 + int(math.log(away / 8) / math.log(128 / 8) * 8), 15)
  return near + (16 if distance > 0 else 0)


class TigerRequest:
  """T5's encoder over a start token and the codes of the history, and its decoder."""

  def __init__(self, model, params, batch, b, drop=keep_all):
    self.config = model.config
    self.levels = len(model.codebooks)
    self.params = params
    self.b = b
    self.drop = drop
    self.kinds = batch.slot_kind_BS[b]
    self.codes_ST = batch.slot_codes_BST[b]
    self.encoded, self.real = self._encode()

  def embed(self, level, code):
    return np.asarray(self.params[f"codes_{level}"][code], np.float64)

  def _encode(self):
    p, drop, b = self.params, self.drop, self.b
    x, real = [np.asarray(p["bos"][0], np.float64)], [0]
    for kind, codes in zip(self.kinds, self.codes_ST, strict=True):
      for level, code in enumerate(codes):
        if kind == HISTORY:
          real.append(len(x))
        x.append(self.embed(level, code))
    x = [drop(row, b, place) for place, row in enumerate(x)]
    for layer in range(self.config.layers):
      q = p[f"encoder_{layer}"]
      qkv = [
        linear(q["qkv"], rms_norm(q["attention_norm"], row)).reshape(3, self.config.heads, -1)
        for row in x
      ]
      out = []
      for place, row in enumerate(x):
        bias = np.array([p["relative"][bucket(other - place)] for other in real]).T
        read = attend(qkv[place][0], [qkv[i][1] for i in real], [qkv[i][2] for i in real], bias)
        row = row + drop(linear(q["attention_out"], read), b, place)
        hidden = drop(relu(linear(q["ffn_in"], rms_norm(q["ffn_norm"], row))), b, place)
        out.append(row + drop(linear(q["ffn_out"], hidden), b, place))
      x = out
    return [rms_norm(p["encoder_norm"], row) for row in x], real

  def states(self, codes, m=0):
    """States of the T levels; `m` is the sequence's number, for dropout."""
    p, c, b, drop = self.params, self.config, self.b, self.drop
    h = [np.asarray(p["bos"][1], np.float64)] + [
      self.embed(t, code) for t, code in enumerate(codes[:-1])
    ]
    h = [drop(row, b, m, t) for t, row in enumerate(h)]
    for layer in range(c.layers):
      q = p[f"decoder_{layer}"]
      kv = [
        linear(p[f"cross_kv_{layer}"], self.encoded[i]).reshape(2, c.heads, -1) for i in self.real
      ]
      qkv = [
        linear(q["self_qkv"], rms_norm(q["self_norm"], row)).reshape(3, c.heads, -1) for row in h
      ]
      out = []
      for t, row in enumerate(h):
        read = attend(
          qkv[t][0], [qkv[u][1] for u in range(t + 1)], [qkv[u][2] for u in range(t + 1)]
        )
        row = row + drop(linear(q["self_out"], read), b, m, t)
        query = linear(q["cross_q"], rms_norm(q["cross_norm"], row)).reshape(c.heads, -1)
        read = attend(query, [keys for keys, _ in kv], [values for _, values in kv])
        row = row + drop(linear(q["cross_out"], read), b, m, t)
        hidden = drop(relu(linear(q["ffn_in"], rms_norm(q["ffn_norm"], row))), b, m, t)
        out.append(row + drop(linear(q["ffn_out"], hidden), b, m, t))
      h = out
    return [rms_norm(p["decoder_norm"], row) for row in h]

  def logits(self, level, h):
    return linear(self.params[f"head_{level}"], h)

  def level_logp(self, codes, m=0):
    states = self.states(codes, m)
    return [np.log(softmax(self.logits(t, states[t]))[code]) for t, code in enumerate(codes)]


def tiger_outputs(requests, codes_BMT, bins):
  """What TIGER's `__call__` gives: it has no value, no MTP branch and no copy path."""
  pairs = zip(requests, codes_BMT, strict=True)
  logp_BMT = np.array(
    [[request.level_logp(codes, m) for m, codes in enumerate(rows)] for request, rows in pairs]
  )
  return {
    "logp_BM": logp_BMT.sum(-1),
    "generated_logp_BMT": logp_BMT,
    "ecpm_logits_BMV": np.zeros((*logp_BMT.shape[:2], bins)),
    "mtp_logp_BMT": np.zeros_like(logp_BMT),
    "gate_B": np.zeros(len(logp_BMT)),
  }
