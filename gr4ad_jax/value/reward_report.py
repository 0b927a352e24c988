"""What a reward model is worth on requests that it has not learned from: over all pairs of
request and ad.
"""

import os
from collections.abc import Callable

import numpy as np

from gr4ad_jax.config import Config
from gr4ad_jax.evaluation import calibration, metrics, protocols, report_tables
from gr4ad_jax.features import history, trends
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.value import reward_run
from gr4ad_jax.value.reward_model import RewardModel

_PAIRS = 1 << 24  # pairs of a report: beyond it requests are sampled
_SHARE = trends.FEATURES.index("share_28")
_COUNT = history.FEATURES.index("decayed_count")
_NEVER = 0.05  # what the baseline takes a user's decayed count of an ad that he never took to be


def report(
  config: Config,
  inputs: Inputs,
  split: str = "valid",
  told: Callable[[str, int, int], None] = lambda *_: None,
) -> dict:
  """Scores all ads for the requests of a split, and writes <workdir>/reward/report.json.

  Args:
    config: of the run.
    inputs: its data, tokenizer and features.
    split: one that was not learned from.
    told: hears of progress: what, requests done, requests in all.

  Returns:
    A dict for JSON: auc, log_loss, calibration_error and deciles of p(purchase); baseline_auc of
      popularity x recency; value: bias, mae and rmse of E[value | purchase] on bought pairs, money;
      ranking: metrics of all ads by p and by p x value.

  Raises:
    FileNotFoundError: there is no reward model.
  """
  model = RewardModel.load(config, inputs, split)
  requests = protocols.eval_requests(inputs.dataset, split, config.data.target_behavior)
  num_ads = len(inputs.dataset.ads)
  ks = protocols.protocol_of(inputs.dataset.name).ks
  # All ads of some requests say more of calibration than some ads of all requests.
  if len(requests) * num_ads > _PAIRS:
    rows = np.random.default_rng(0).permutation(len(requests))[: max(1, _PAIRS // num_ads)]
    requests = requests.take(np.sort(rows))
  p_RN, worth_RN, base_RN = _scored(model, requests, num_ads, told)
  bought_RN, value_RN = _bought(requests, num_ads, inputs.ecpm.clip)
  # (R, N) -> (R·N,): calibration is of pairs, whatever request they are of.
  deciles = calibration.by_decile(p_RN.ravel(), bought_RN.ravel())
  made = {
    "dataset": inputs.dataset.name,
    "split": split,
    "requests": len(requests),
    "pairs": int(p_RN.size),
    "auc": calibration.auc(p_RN.ravel(), bought_RN.ravel()),
    "baseline_auc": calibration.auc(base_RN.ravel(), bought_RN.ravel()),
    "log_loss": calibration.log_loss(p_RN.ravel(), bought_RN.ravel()),
    "calibration_error": calibration.calibration_error(deciles),
    "deciles": deciles,
    # The value alone: what p was multiplied in is divided out again, of bought pairs.
    "value": _value_error((worth_RN / np.maximum(p_RN, 1e-12))[bought_RN], value_RN[bought_RN]),
    "ranking": {},
  }
  for name, score_RN in (("p", p_RN), ("p x value", worth_RN)):
    best = np.argsort(-score_RN, axis=1, kind="stable")[:, : max(ks)].astype(np.int32)
    # Fewer ads than the deepest k: lists are padded, as metrics expect.
    best = np.pad(best, ((0, 0), (0, max(ks) - best.shape[1])), constant_values=-1)
    made["ranking"][name] = {
      metric: ratio.value for metric, ratio in metrics.per_request(best, requests, ks).items()
    }
  report_tables.write_json(os.path.join(reward_run.folder_of(config), "report.json"), made)
  return made


def _scored(
  model: RewardModel,
  requests: protocols.EvalRequests,
  num_ads: int,
  told: Callable[[str, int, int], None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """[R, N] each: p(purchase), p times E[value | purchase], and the baseline's score."""
  p_RN = []
  worth_RN = []
  base_RN = []
  # 16 requests at a time, each with all ads of the table.
  for begin in range(0, len(requests), 16):
    some = requests.request[begin : begin + 16]
    ads = np.broadcast_to(np.arange(num_ads), (len(some), num_ads))
    found = model.estimate(some, ads)
    p_RN.append(found.purchase_BC)
    worth_RN.append(found.purchase_BC * found.value_BC)
    base_RN.append(_popular_and_recent(model.features, some, ads))
    told("scored", begin + len(some), len(requests))
  return np.concatenate(p_RN), np.concatenate(worth_RN), np.concatenate(base_RN)


def _value_error(thought_E: np.ndarray, paid_E: np.ndarray) -> dict[str, float]:
  """How far E[value | purchase] is from what was paid, over the bought pairs; money, but for the
  bias.
  """
  return {
    "bias": float(thought_E.mean() / paid_E.mean() - 1) if paid_E.any() else 0.0,
    "mae": float(np.abs(thought_E - paid_E).mean()),
    "rmse": float(np.sqrt(np.square(thought_E - paid_E).mean())),
    "mean": float(paid_E.mean()),
  }


def _popular_and_recent(features, requests: np.ndarray, ads: np.ndarray) -> np.ndarray:
  """Share of the last four weeks' lines times the user's decayed count."""
  time = features.lines.request_time[requests]
  share = features.popularity.features(time, ads)[..., _SHARE]
  line = features.last_lines(requests, ads)
  own = history.history_features(features.lines, requests, line)[..., _COUNT]
  # Features are on log scales; the product is of counts.
  return np.exp(share) * (np.expm1(own) + _NEVER)


def _bought(
  requests: protocols.EvalRequests, num_ads: int, clip: float
) -> tuple[np.ndarray, np.ndarray]:
  bought = np.zeros((len(requests), num_ads), bool)
  value = np.zeros((len(requests), num_ads), np.float32)
  # (P,) and (P,): a cell for each target.
  bought[requests.target_row, requests.target_ad] = True
  value[requests.target_row, requests.target_ad] = np.minimum(requests.target_value, clip)
  return bought, value


def format_report(found: dict) -> str:
  """The report in words and a table."""
  lines = [
    (
      f"{found['dataset']}, {found['split']}: {found['requests']:,} requests, {found['pairs']:,} "
      "pairs"
    ),
    (
      f"AUC {found['auc']:.4f} (popularity x recency {found['baseline_auc']:.4f}), log-loss "
      f"{found['log_loss']:.5f}"
    ),
    f"calibration error by decile {found['calibration_error']:.2%}",
    f"value of what was bought: mean {found['value']['mean']:.2f}, bias "
    f"{found['value']['bias']:+.1%}, "
    f"mean absolute error {found['value']['mae']:.2f}, root mean square "
    f"{found['value']['rmse']:.2f}",
    "",
    *report_tables.aligned(
      [
        ["decile", "predicted", "observed", "error"],
        *(
          [str(d + 1), f"{one['predicted']:.0f}", f"{one['observed']:.0f}", f"{one['error']:+.1%}"]
          for d, one in enumerate(found["deciles"])
        ),
      ]
    ),
    "",
    *report_tables.aligned(
      [
        ["all ads by", *next(iter(found["ranking"].values()))],
        *(
          [name, *(f"{value:.4f}" for value in row.values())]
          for name, row in found["ranking"].items()
        ),
      ]
    ),
  ]
  return "\n".join(lines)
