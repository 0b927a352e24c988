"""Knobs of the models, and of what they learn from targets."""

import dataclasses

from gr4ad_jax.knobs import knob


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The decoder and its context (docs/design/method.md §2), or another model of the zoo."""

  model: str = knob("gr4ad", "Which model: a name of zoo/registry.py.")
  layers: int = knob(3, "Decoder layers (L).", low=1)
  lazy_layers: int = knob(
    2, "Lazy layers (K), 0 to L-1: computed once a request, without tokens.", low=0
  )
  width: int = knob(128, "Model width (D).", low=8)
  heads: int = knob(2, "Query heads (H).", low=1)
  kv_groups: int = knob(1, "Key/value groups of the context (G).", low=1)
  kv_layers: int = knob(1, "Key/value sets of the context (L_kv).", low=1)
  kv_split: int = knob(1, "1: values are the keys; 2: separate (S_kv).", choices=(1, 2))
  feature_bins: int = knob(
    10, "Pieces of the context's features in their piecewise linear encoding; 0: none.", low=0
  )
  ffn_multiple: int = knob(4, "Feed-forward width over model width.", low=1)
  dropout: float = knob(0.3, "Dropout rate.", low=0, high=0.9)
  feature_dropout: float = knob(
    0.0,
    "Share of the context's slots, drawn at each step, whose features training hides: what is left "
    "is known of a new ad too.",
    low=0,
    high=0.9,
  )
  copy: str = knob(
    "context",
    (
      "Slots whose ads the copy path may name: none, the history's, or also neighbours and rising "
      "ads."
    ),
    choices=("off", "history", "context"),
  )
  history_bias: bool = knob(
    False, "Learn a signed bias on the history's ads in the item-level score."
  )
  history_bias_ads: int = knob(
    16, "Latest ads of the history that the bias' normaliser is estimated on.", low=1
  )
  encoder_layers: int = knob(1, "gr4ad_items: layers of self-attention over the history.", low=0)
  encoder_dropout: float = knob(0.5, "gr4ad_items: dropout rate of the encoder.", low=0, high=0.9)
  encoder_causal: bool = knob(
    True, "gr4ad_items: each place of the history sees those before it alone."
  )
  ecpm_bins: int = knob(16, "Equal-probability bins of the eCPM token.", low=2)
  cross_attention: str = knob(
    "auto",
    "Cross-attention to a context whose values are its keys: as products; as a fused kernel, which "
    "a CPU interprets, slowly; auto: fused on a single accelerator, where its sizes allow it.",
    choices=("auto", "plain", "fused"),
    free=True,
  )
  head_piece: int = knob(
    0,
    "Most codes of a level that are scored at a time where sequences are given, as in training; "
    "0: all on CPU, 64 MiB of scores on accelerators.",
    low=0,
    free=True,
  )
  compute_dtype: str = knob(
    "auto",
    "Matmul dtype; auto: bfloat16 on accelerators, float32 on CPU.",
    choices=("auto", "float32", "bfloat16"),
    free=True,
  )


@dataclasses.dataclass(frozen=True)
class ItemConfig:
  """Models of the zoo that score single ads (SASRec, HSTU), not UA-SIDs."""

  item_loss: str = knob(
    "softmax",
    "Softmax over all ads; over target, history and sampled ads; over the batch's targets, "
    "corrected for how often an ad is one; or binary, one sampled ad a target.",
    choices=("softmax", "sampled", "inbatch", "bce"),
  )
  item_negatives: int = knob(1024, "Ads drawn a step, evenly, for --item_loss=sampled.", low=1)
  item_smoothing: float = knob(0.0, "Label smoothing of --item_loss=softmax.", low=0, high=0.9)
  item_start: str = knob(
    "random",
    (
      "Vectors of ads at the start: random; of their co-occurrence (PPMI, SVD); or of that and the "
      "tokenizer's together."
    ),
    choices=("random", "ppmi", "ppmi+content"),
  )
  inner_targets: bool = knob(
    False, "Each ad of the history is also a target of what stands before it."
  )
  inner_positions: int = knob(
    12, "Most such targets a step learns from, a request, in the mean.", low=1
  )


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """VSL (docs/design/method.md §3.1), and what is learned beside it from lists with rewards
  (§3.2 to 3.4).
  """

  objective: str = knob(
    "vsl",
    (
      "VSL alone; VSL plus a list objective on rewarded candidates; or VSL and RSPO with the "
      "unified weights."
    ),
    choices=("vsl", "dpo", "sdpo", "grpo", "xent", "rspo", "unified"),
  )
  lambda_ecpm: float = knob(0.1, "Weight of the eCPM token.", low=0)
  lambda_mtp: float = knob(0.1, "Weight of the MTP branch.", low=0)
  lambda_item: float = knob(1.0, "gr4ad_items: weight of the item-level softmax.", low=0)
  value_weight: str = knob(
    "log",
    (
      "w_behavior's growth with money: none, log(1+value), or root or value of what the 99th "
      "percentile clips."
    ),
    choices=("none", "log", "sqrt", "linear"),
  )
  depth_weight: float = knob(
    1.0, "w_behavior's growth per step of depth (click < cart < purchase).", low=0
  )
  user_weight: float = knob(
    0.0, "Exponent of a user's long-term value in w_user; 0 treats users alike.", low=0, high=1
  )
