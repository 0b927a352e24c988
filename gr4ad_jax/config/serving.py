"""Knobs of the search and of the server."""

import dataclasses

from gr4ad_jax.knobs import knob


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
      "Ads of the first stage that the reranker, --diversity and --quota_share choose from; "
      "beside beams --reranker=neighbors has as many more."
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
  diversity: float = knob(
    0.0,
    "What an ad's score loses by an ad above it in the list that is the same by content, less as "
    "they differ (MMR); by likelihood in nats; 0: nothing.",
    low=0,
  )
  quota_group: str = knob(
    "small_accounts",
    "Ads that --quota_share keeps places for: those of the accounts that have a fifth of the lines "
    "together, the ads that have, or those without a line.",
    choices=("small_accounts", "tail_ads", "new_ads"),
  )
  quota_share: float = knob(
    0.0, "Share of a list's places, at every depth, that the group has at least.", low=0, high=1
  )
  basket_weight: float = knob(
    1.0,
    "--basket: weight of the logarithm of an ad's mean cosine of visits with the basket's ads, "
    "beside its score.",
    low=0,
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
  explained_ads: int = knob(
    3, "First ads of an answer that come with reasons where `explain` asks; 0: none.", low=0
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
  stream: str = knob(
    "",
    "Where events and impressions are kept: sqlite:<path> or redis://host:port/<prefix>; empty: a "
    "file of the run's live folder.",
  )
  arms: str = knob(
    "",
    "File of named arms with their shares of the users, as docs/guide/live.md has it; empty: none.",
  )
  stream_days: float = knob(
    400.0, "Days that events, impressions and lists are kept in the stream; 0: for good.", low=0
  )
  stream_gb: float = knob(
    20.0, "Most of the values of such a topic, GB; the oldest go first; 0: no limit.", low=0
  )
  hot_users: int = knob(
    20_000, "Users with new events that are held in memory; others are read when asked for.", low=1
  )
  snapshot_seconds: float = knob(
    10.0,
    "How often what is known of users is written with its place in the stream, seconds.",
    low=0.1,
  )
  explore: bool = knob(
    False,
    "The last place of a list is drawn from the next 50 by a softmax of their scores, and the "
    "answer tells the propensity.",
  )
  explore_spread: float = knob(
    0.0,
    "--explore: the draw takes an ad's value for this many standard deviations above its mean, by "
    "the distribution that the eCPM head predicts.",
    low=0,
  )
  state_dir: str = knob(
    "",
    "Where a server and an evaluation write (live/, eval/); empty: the run's directory, or, of a "
    "published run, a folder below ~/.local/state/gr4ad_jax.",
    free=True,
    place=True,
  )
  fallback_segments: int = knob(
    8, "Segments of users that have a popularity list of their own.", low=1
  )
