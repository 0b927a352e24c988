"""The knobs of a run, by section: each with its default, its unit and the values it allows."""

import dataclasses
from typing import Any


class ConfigError(ValueError):
  """A setting, or a pair of settings, that is not allowed; the message says what is."""


def knob(
  default: Any,
  help: str,
  *,
  choices: tuple | None = None,
  low: float | None = None,
  high: float | None = None,
  free: bool = False,
  place: bool = False,
  of: str = "",
):
  """A dataclass field with what is said of it.

  Args:
    default: its value where none is given.
    help: of its flag.
    choices: what it may be.
    low: the least that it, or every element of a tuple, may be.
    high: the most, likewise.
    free: whether a trained run may change it: it shapes no result.
    place: whether it says where something lies, and so may differ between machines of a job.
    of: the one family that reads it, of a section that others read too; empty: all do.
  """
  about = {"help": help, "choices": choices, "low": low, "high": high}
  return dataclasses.field(
    default=default, metadata=about | {"free": free, "place": place, "of": of}
  )


def shown(value: Any) -> str:
  """A knob's value as its flag is written: `128,256,512`."""
  return (
    ",".join(str(element) for element in value) if isinstance(value, (tuple, list)) else str(value)
  )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which data set, and the shape of a request."""

  dataset: str = knob(
    "online_retail", "Which data set.", choices=("online_retail", "amazon_reviews", "ad_log")
  )
  data_dir: str = knob(
    "", "Where prepared data sets lie; empty: a folder in the user's cache.", free=True, place=True
  )
  ads_path: str = knob(
    "",
    "ad_log, amazon_reviews: the ad table (.parquet or .csv, or a folder of such parts).",
    free=True,
    place=True,
  )
  events_path: str = knob(
    "",
    "ad_log, amazon_reviews: the event log (.parquet or .csv, or a folder of such parts).",
    free=True,
    place=True,
  )
  behaviors: tuple[str, ...] = knob(
    ("click", "cart", "purchase"), "ad_log: behaviours, shallowest first."
  )
  on_unknown_ad: str = knob(
    "error",
    "ad_log: an event of an ad that the table lacks: stop, or set it aside.",
    choices=("error", "drop"),
  )
  session_gap_minutes: float = knob(
    30.0, "ad_log without request_id: a pause this long starts a new visit.", low=0
  )
  target_behavior: str = knob("", "Shallowest behaviour that counts as a hit; empty: any.")
  attribution_days: float = knob(
    30.0,
    "What a request's visit brings counts as its target up to so many days after the request.",
    low=0,
  )
  history_slots: int = knob(128, "Context slots for distinct ads of the user's history (S).", low=1)
  neighbor_slots: int = knob(64, "Context slots for unseen ads co-bought with the history.", low=0)
  rising_slots: int = knob(32, "Context slots for ads that rise at request time.", low=0)
  neighbor_folds: int = knob(
    5,
    (
      "Parts of the users: those of a part see neighbours that the others made, in training; 0: "
      "their own too."
    ),
    low=0,
  )
  behavior_features: bool = knob(
    True,
    (
      "Slots and users have features of behaviour, popularity and time; off, for logs without a "
      "clock: ads alone."
    ),
  )
  targets: int = knob(16, "Supervised targets a request (M).", low=1)


@dataclasses.dataclass(frozen=True)
class SidConfig:
  """UA-SID: how an ad becomes codes."""

  encoder: str = knob(
    "wordllama",
    (
      "Text encoder: 'wordllama', a folder of a BERT or another sentence-transformers model, or "
      ".npy/.parquet vectors of the ads in table order."
    ),
  )
  codebooks: tuple[int, ...] = knob(
    (256, 64, 24), "Codes a level, first to last; the last level is hashed.", low=1
  )
  last_level: str = knob(
    "probe",
    (
      "Last level: hash of business features, or hash then first free code of the prefix, or of "
      "the next with room."
    ),
    choices=("hash", "probe"),
  )
  tower_width: int = knob(128, "Width of the unified ad embedding.", low=2)
  tower_steps: int = knob(
    600, "InfoNCE steps of the embedding tower; 0 keeps the encoder's vectors.", low=0
  )
  tower_temperature: float = knob(0.07, "InfoNCE temperature.", low=1e-3)
  cooccurrence_width: int = knob(
    0,
    (
      "Singular vectors of co-occurrence in training that stand beside an ad's unit vector in "
      "k-means; 0: none."
    ),
    low=0,
  )
  cooccurrence_window: int = knob(
    50, "Lines of a user within which two ads count as taken together, in those vectors.", low=1
  )
  swing_alpha: float = knob(1.0, "Swing's smoothing constant.", low=0)
  swing_neighbors: int = knob(16, "Swing neighbours of an ad that count as positives.", low=1)
  swing_visits: int = knob(256, "Visits by which Swing judges an ad; of more, a sample.", low=2)
  swing_basket: int = knob(1000, "Ads of a visit that Swing looks at; of more, a sample.", low=2)
  swing_support: int = knob(2, "Visits that two ads must share to be Swing neighbours.", low=2)
  swing_path: str = knob(
    "", "Swing neighbours made by experiments.swing_beam (.npz); empty: fitted here."
  )
  swing_memory_mb: int = knob(
    1024, "MiB of Swing's working memory, beside the log; changes no result.", low=16, free=True
  )
  kmeans_iterations: int = knob(20, "Lloyd iterations a level.", low=1)
  quantizer: str = knob(
    "kmeans",
    (
      "What makes the levels before the last: residual k-means of the vectors, or an RQ-VAE's "
      "codes of their latents."
    ),
    choices=("kmeans", "rqvae"),
  )
  rqvae_width: int = knob(32, "Width of the RQ-VAE's latent vector.", low=1)
  rqvae_steps: int = knob(2000, "Optimiser steps of the RQ-VAE.", low=1)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The decoder and its context (docs/design/method.md §2), or another model of the zoo."""

  model: str = knob("gr4ad", "Which model: a name of models/zoo/registry.py.")
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


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
  """Candidates, their rewards and the list objectives; not read with --objective=vsl."""

  preference_weight: float = knob(
    1.0, "Weight of the list objective beside VSL; of RSPO's part with unified.", low=0
  )
  beta: float = knob(1.0, "Sharpness of the preference (DPO, S-DPO, RSPO).", low=0)
  delta: float = knob(1.0, "RSPO drops the reference where the mean log-ratio reaches this.")
  gain: str = knob(
    "linear", "RSPO's gain of a reward: the reward, or 2^reward - 1.", choices=("linear", "exp2")
  )
  ranks: str = knob(
    "reward", "Ranks whose distance weighs a pair of RSPO.", choices=("reward", "model")
  )
  normalize_rows: bool = knob(True, "Scale each row of RSPO's pair weights to sum 1.")
  reference: bool = knob(
    True, "Compare with the reference policy; off: RSPO, DPO and S-DPO on the policy alone."
  )
  z_max: float = knob(1.0, "Largest weight of RSPO in the unified objective (Z_max).", low=0)
  grpo_clip: float = knob(0.2, "GRPO's limit on the change of the ratio to the reference.", low=0)
  grpo_kl: float = knob(0.1, "GRPO's weight of the divergence from the reference.", low=0)
  policy_candidates: int = knob(
    40, "Best ads by the reference policy's own beams, a request.", low=0
  )
  other_candidates: int = knob(8, "Best ads by each other pipeline, a request.", low=0)
  pipelines: tuple[str, ...] = knob(
    ("recency", "neighbors", "popularity"),
    (
      "Pipelines without a reference probability: the user's recent ads, co-bought ads, EASE, ads "
      "popular lately."
    ),
    choices=("recency", "neighbors", "ease", "popularity"),
  )
  candidate_beams: int = knob(128, "Beam width of the candidates' search, at every level.", low=1)
  refresh_steps: int = knob(
    100,
    (
      "Steps of a round: before each the reference is refreshed, and proposes the round's "
      "candidates."
    ),
    low=1,
  )
  preference_dropout: bool = knob(False, "Keep the model's dropout while lists are learned from.")
  collapse_entropy: float = knob(
    0.5, "Alarm where the policy's entropy falls below this share of the start's.", low=0, free=True
  )
  collapse_coverage: float = knob(
    0.7, "Alarm where coverage@10 falls below this share of the start's.", low=0, free=True
  )
  reward: str = knob(
    "revenue",
    "What a candidate is worth: 'revenue', 'margin' or 'lifetime' by the reward model, 'logged' "
    "revenue, or your own package.module:function over the columns of training/rewards.py.",
  )
  margins_path: str = knob(
    "", "--reward=margin: ad_id and margin, the share of its money that is kept (.csv)."
  )
  reward_power: float = knob(1.0, "Exponent of the reward.", low=0.01)
  value_exponent: float = knob(
    1.0,
    "Exponent of the reward model's E[value | purchase]; below 1 the reward keeps more recall.",
    low=0,
  )
  reward_prior: float = knob(
    0.0,
    (
      "Share of the reference policy's own log p in the reward's log p(purchase): two estimates "
      "err apart."
    ),
    low=0,
    high=1,
  )
  exposure: str = knob(
    "none",
    "Share that lowers a reward: the ad's or its advertiser's.",
    choices=("none", "ad", "account"),
  )
  exposure_weight: float = knob(0.0, "Reward is multiplied by (share / mean share)^-weight.", low=0)
  reward_from: str = knob(
    "", "Workdir whose reward model is used; empty: --init_from's, else the run's own."
  )
  candidates_cache: str = knob(
    "",
    "Folder where candidates are kept for other runs from the same start; empty: none.",
    free=True,
  )


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """The reward model (`experiments.reward`)."""

  reward_width: int = knob(
    64, "Width of the reward model; its inner layers are twice as wide.", low=8
  )
  reward_heads: int = knob(
    2, "Attention heads of an ad over the history; a divisor of the width.", low=1
  )
  reward_bins: int = knob(10, "Pieces of the piecewise linear encoding of a number.", low=1)
  reward_crosses: int = knob(2, "Cross layers (DCN-v2).", low=0)
  reward_ids: int = knob(
    16_384, "Embeddings of single ads, shared where there are more; 0: codes alone.", low=0
  )
  reward_dropout: float = knob(0.1, "Dropout rate of the reward model.", low=0, high=0.9)
  reward_epochs: float = knob(2.0, "Passes over the training requests.", low=1e-3)
  reward_learning_rate: float = knob(1e-3, "Peak learning rate of the reward model.", low=0)
  reward_weight_decay: float = knob(
    0.01, "AdamW's decoupled decay of the reward model, matrices only.", low=0
  )
  reward_value_weight: float = knob(
    0.5, "Weight of the value loss beside the purchase loss.", low=0
  )
  reward_value_power: float = knob(
    1.0, "Variance of a value over its mean: 1 Poisson, 2 gamma.", low=1, high=2
  )
  reward_targets: int = knob(32, "Most of a request's own ads that it is learned from.", low=1)
  reward_shown: int = knob(64, "Ads drawn from the request's context slots, a request.", low=1)
  reward_negatives: int = knob(64, "Ads drawn evenly from the whole table, a request.", low=1)
  reward_calibration: float = knob(
    0.2, "Share of the users whose last training visit is kept for calibration.", low=0, high=0.9
  )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Optimiser and loop."""

  fit_splits: str = knob(
    "train",
    "What is learned from: train alone, to choose settings on valid; or valid too, for a last run.",
    choices=("train", "train+valid"),
    of="requests",
  )
  period: tuple[float, ...] = knob(
    (0.0, 1.0),
    "Begin and end, in shares of those requests in order of time, of what is learned from.",
    low=0,
    high=1,
    of="requests",
  )
  examples: str = knob(
    "requests",
    (
      "An epoch: every request; or each user's last, and those a full history before it (for "
      "--inner_targets)."
    ),
    choices=("requests", "users"),
    of="requests",
  )
  data_order: str = knob(
    "shuffled",
    (
      "Order of the requests: a new permutation each epoch; or by time, each predicted before it "
      "is learned from."
    ),
    choices=("shuffled", "time"),
    of="requests",
  )
  init_from: str = knob(
    "", "Workdir of a trained run whose parameters, UA-SIDs and features this one starts from."
  )
  epochs: float = knob(
    3.0, "Passes over the training requests; --max_steps may end them sooner.", low=1e-3, free=True
  )
  max_steps: int = knob(
    0, "Stop after this many steps; 0: no limit beyond epochs.", low=0, free=True
  )
  learning_rate: float = knob(2e-3, "Peak learning rate of AdamW.", low=0)
  warmup_steps: int = knob(50, "Linear warm-up, steps.", low=0)
  schedule: str = knob(
    "cosine",
    "Learning rate after it: a cosine to 0 at the run's end; or endless, constant or 1/√step.",
    choices=("cosine", "constant", "inverse_sqrt"),
  )
  weight_decay: float = knob(0.01, "AdamW's decoupled decay, matrices only.", low=0)
  table_optimizer: str = knob(
    "adamw",
    (
      "Optimiser of the table of ads: that of all else; or row-wise Adagrad, one number a row and "
      "no decay."
    ),
    choices=("adamw", "adagrad"),
    of="requests",
  )
  table_learning_rate: float = knob(
    0.02, "Peak learning rate of --table_optimizer=adagrad.", low=0, of="requests"
  )
  clip_norm: float = knob(1.0, "Global gradient norm limit; 0: none.", low=0)
  accumulate: int = knob(
    1, "Micro-batches a step; each normalises its loss by its own targets.", low=1
  )
  mesh: str = knob(
    "data:-1",
    "Devices by axis: data, fsdp (parameters too), tensor; as data:-1,fsdp:4. -1: the rest.",
    free=True,
  )
  remat: str = knob(
    "none",
    "What is kept for the backward pass of a model's blocks, context and heads: everything; the "
    "products of weights, logits aside (dots); or their inputs alone (full). The rest is computed "
    "again: less memory, more time.",
    choices=("none", "dots", "full"),
    free=True,
  )
  batch_size: int = knob(64, "Examples a step, over all devices (B): requests, say.", low=1)
  seed: int = knob(0, "Seed of initialisation, order and dropout.", low=0, high=2**31 - 1)
  log_every: int = knob(20, "Steps between metric lines.", low=1, free=True)
  eval_every: int = knob(
    200,
    "Steps between valid evaluations, unless valid is learned from; 0: at the end.",
    low=0,
    free=True,
  )
  eval_requests: int = knob(
    512, "Valid requests of a periodic evaluation.", low=1, free=True, of="requests"
  )
  save_every: int = knob(200, "Steps between checkpoints.", low=1, free=True)
  loader_threads: int = knob(
    0,
    (
      "Threads that make batches ready; 0: one on CPU, where cores are the devices, else one a "
      "core, 8 at most."
    ),
    low=0,
    free=True,
  )
  profile_steps: str = knob(
    "",
    (
      "As 10:15: a profiler trace in <workdir>/profile from where 10 steps are done to where 15 "
      "are; empty: none."
    ),
    free=True,
  )
  peak_tflops: float = knob(
    0.0,
    (
      "Dense bfloat16 peak of a device, TFLOP/s, that utilisation is a share of; 0: as its name "
      "tells."
    ),
    low=0,
    free=True,
  )

  @property
  def profiled(self) -> tuple[int, int]:
    """Steps done at the begin and at the end of the trace; (0, 0): none. Raises ValueError where
    they are not a:b.
    """
    first, last = map(int, self.profile_steps.split(":")) if self.profile_steps else (0, 0)
    if self.profile_steps and not 0 <= first < last:
      raise ValueError(f"{self.profile_steps!r} is no window of steps")
    return first, last

  @property
  def fitted(self) -> tuple[str, ...]:
    """The splits that are learned from, in order of time."""
    return tuple(self.fit_splits.split("+"))


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """Beam search over the index."""

  beams: tuple[int, ...] = knob(
    (128, 128, 128), "Beam width after each level, as 128,256,512 or 128-256-512.", low=1
  )
  order: str = knob(
    "likelihood",
    "Final order of the list: p, E[value], or p * E[value]^value_power.",
    choices=("likelihood", "ecpm", "blend"),
  )
  value_power: float = knob(0.3, "Weight of the predicted value with --order=blend.", low=0)
  item_weight: float = knob(
    1.0, "gr4ad_items: weight of the item-level head beside log p of the UA-SID.", low=0
  )
  guided: bool = knob(
    True, "gr4ad_items: the head helps to choose the beams, by the mean vector of a prefix' ads."
  )
  ecpm_beams: int = knob(
    0, "Likeliest final beams that get an eCPM, and are answered; 0: all.", low=0
  )
  precut: str = knob(
    "auto",
    (
      "What goes before the global top k: nothing, short blocks' maxima, or each beam's own top k; "
      "the same result."
    ),
    choices=("auto", "off", "blocks", "beams"),
  )
  reranker: str = knob(
    "none",
    "Evaluation's second stage: orders the ads found and those of the context slots by p * "
    "E[value]^exponent, by the run's reward model or LightGBM on the same features; or adds to "
    "the ads' scores what followed the history's ads.",
    choices=("none", "reward", "lightgbm", "neighbors"),
  )
  rerank_candidates: int = knob(
    200,
    (
      "Ads of the first stage that the reranker gets; beside beams --reranker=neighbors has as "
      "many more."
    ),
    low=1,
  )
  neighbor_weight: float = knob(
    0.5,
    (
      "--reranker=neighbors: weight of the logarithm of an ad's share in what followed, beside its "
      "score."
    ),
    low=0,
  )
  seen_ads: str = knob(
    "left",
    "Ads that the user took before stay in the lists as the model ranks them, or are left out of "
    "the search.",
    choices=("left", "masked"),
  )
  seen_days: float = knob(
    0.0, "--seen_ads=masked: days that an ad is left out after it was taken; 0: for good.", low=0
  )
  rerank_exponent: float = knob(
    1.0, "Exponent of E[value | purchase] in the reranker's order.", low=0
  )
  rerank_prior: float = knob(
    0.0,
    "Share of the UA-SID's log p, the first stage's, in the reranker's log p(purchase).",
    low=0,
    high=1,
  )
  quantize: str = knob(
    "none",
    "Precision of the weights in search: as trained, int8 a column, or fp8 with fp8 activations.",
    choices=("none", "int8", "fp8"),
  )


@dataclasses.dataclass(frozen=True)
class ServeConfig:
  """The server: batching, traffic-aware beams, cache, limits."""

  host: str = knob("127.0.0.1", "Address to listen on.")
  port: int = knob(8080, "Port to listen on; 0: any free one.", low=0, high=65535)
  buckets: tuple[int, ...] = knob(
    (1, 2, 4, 8), "Batch sizes that are compiled; a batch is padded to the next.", low=1
  )
  max_wait_ms: float = knob(2.0, "How long a batch waits for more requests, ms.", low=0)
  queue_size: int = knob(256, "Requests that may wait; one more is refused with 503.", low=1)
  deadline_ms: float = knob(1000.0, "Deadline of a request that names none, ms.", low=1)
  target_ms: float = knob(
    100.0, "Latency that the traffic-aware beams hold at the 99th percentile, ms.", low=1
  )
  tabs: bool = knob(True, "Traffic-aware beam widths (TABS); off: always --beams.")
  tabs_factors: tuple[float, ...] = knob(
    (0.25, 0.5, 1.0, 1.6),
    "Widths that TABS chooses among, as factors of --beams.",
    low=0.01,
    high=16,
  )
  cache_seconds: float = knob(60.0, "Life of a cached answer, seconds; 0: no cache.", low=0)
  cache_entries: int = knob(10_000, "Most answers that the cache holds.", low=1)
  cache_mb: int = knob(64, "MiB that they may take together.", low=1)
  reload_seconds: float = knob(
    5.0, "How often a newer checkpoint is looked for, seconds; 0: never.", low=0
  )
  max_k: int = knob(100, "Most ads that a request may ask for.", low=1)
  max_history: int = knob(2_000, "Most events of a history in a request.", low=1)
  max_body_kb: int = knob(512, "Largest body of a request, KiB.", low=1)
  max_header_kb: int = knob(16, "Most of a request's line and headers together, KiB.", low=1)
  max_connections: int = knob(
    1_024, "Most connections at once; fewer where few files may be open.", low=1
  )
  max_peer_connections: int = knob(
    0, "Most connections of one address; 0: no limit, as behind a proxy.", low=0
  )
  request_seconds: float = knob(
    10.0, "How long a request may take to come whole, seconds.", low=0.1
  )
  token_file: str = knob(
    "",
    (
      "File with the bearer token that requests must carry; needed where --host is not this "
      "machine alone."
    ),
  )
  allowed_hosts: str = knob(
    "",
    (
      "Host names, with commas, under which the server may be asked; empty: localhost where --host "
      "is, else any."
    ),
  )
  overlay: int = knob(
    1_024, "Changes of a level of the index that are held beside its main part.", low=16
  )
  cap_times: int = knob(
    0, "How often a user of the log may be shown an ad within --cap_days; 0: no cap.", low=0
  )
  cap_days: float = knob(1.0, "Days that an ad counts as shown for --cap_times.", low=0.0001)
  explore: bool = knob(
    False,
    "The last place of a list is drawn from the next 50 by a softmax of their scores, and the "
    "answer tells the propensity.",
  )
  fallback_segments: int = knob(
    8, "Segments of users that have a popularity list of their own.", low=1
  )
