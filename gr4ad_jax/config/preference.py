"""Knobs of preference learning and of the reward model."""

import dataclasses

from gr4ad_jax.knobs import knob


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
    "revenue, or your own package.module:function over the columns of value/rewards.py.",
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
