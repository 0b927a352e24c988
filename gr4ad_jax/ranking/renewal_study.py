"""What a trained model loses when UA-SIDs are renewed under it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from gr4ad_jax.config import Config
from gr4ad_jax.evaluation import metrics, protocols, report_tables
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.ranking import scoring
from gr4ad_jax.requests import renewal
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.sid import tokenizer as tokenizer_lib
from gr4ad_jax.sid.tokenizer import Tokenizer
from gr4ad_jax.swing.swing import Told

CUT = 10
NEW = 0.05  # share of the ads that the appended setting takes for new
# The settings: their names in the report's rows.
BEFORE = "before"
APPEND = "append"
REFRESH = "refresh"
ANEW = "refresh, not matched"


def measure(
  config: Config, inputs: Inputs, split: str = "test", told: Told | None = None
) -> dict[str, Any]:
  """Recall of a trained run, without any training, after its UA-SIDs were renewed.

  *append*: a twentieth of the ads, drawn, get codes as new ads do. *refresh*: the tokenizer is
  fitted anew with another seed, and its codes are matched to the old ones. *not matched*: they
  keep the names that the fit happened to give them.

  Args:
    config: of the run.
    inputs: its data, tokenizer and features.
    split: 'valid' or 'test'.
    told: hears how far the fit is.

  Returns:
    For JSON: by setting `recall@10` and `revenue@10` (where lines have a value) with 95 %
    intervals, `kept` (share of them that is left, by paired resamples), and `codes`: how many ads
    have their whole UA-SID, and how many their prefix, as before.
  """
  published = renewal.Published(inputs.dataset.ads, inputs.index.codes_NT, inputs.tokenizer)
  # Another seed: the same one would give the same tokenizer again.
  fresh = tokenizer_lib.fit(
    inputs.dataset.ads, inputs.dataset.events, config.sid, seed=config.training.seed + 1, told=told
  )
  renewals = {
    BEFORE: (inputs.tokenizer, inputs.index.codes_NT),
    APPEND: (inputs.tokenizer, _appended(published, config.training.seed)),
    REFRESH: renewal.refresh(published, inputs.dataset.ads, *fresh),
    ANEW: fresh,
  }
  requests = protocols.eval_requests(inputs.dataset, split, config.data.target_behavior)
  ratios = {}
  for name, (tokenizer, codes_NT) in renewals.items():
    ad_RK = scoring.rank_run(config, _with(inputs, tokenizer, codes_NT), requests, CUT).ad_RK
    found = metrics.per_request(ad_RK, requests, (CUT,))
    ratios[name] = {key: ratio for key, ratio in found.items() if not key.startswith("ndcg")}
  old_NT = inputs.index.codes_NT
  return {"split": split, "requests": len(requests)} | {
    "renewals": {
      name: scores
      | {
        "codes": float((renewals[name][1] == old_NT).all(axis=1).mean()),
        # The last level only tells ads of a cell apart, so prefixes say whether meaning was kept.
        "prefixes": float((renewals[name][1] == old_NT)[:, :-1].all(axis=1).mean()),
      }
      for name, scores in _scores(ratios, requests.user).items()
    }
  }


def _appended(published: renewal.Published, seed: int) -> np.ndarray:
  """UA-SIDs of all ads, of which a twentieth came after the others."""
  ads = published.ads
  rng = np.random.default_rng(seed)
  # Sorted: the others keep their order, as in a table that has grown.
  known = np.sort(rng.permutation(len(ads))[round(NEW * len(ads)) :])
  before = dataclasses.replace(published, ads=ads.take(known), codes_NT=published.codes_NT[known])
  return renewal.append(before, ads)


def _with(inputs: Inputs, tokenizer: Tokenizer, codes_NT: np.ndarray) -> Inputs:
  index = SidIndex.build(codes_NT, tokenizer.codebooks)
  return dataclasses.replace(inputs, tokenizer=tokenizer, index=index)


def _scores(
  ratios: Mapping[str, Mapping[str, metrics.Ratio]], user_R: np.ndarray
) -> dict[str, dict[str, Any]]:
  names = list(ratios[BEFORE])
  samples_SF = metrics.resample([row[name] for row in ratios.values() for name in names], user_R)
  found: dict[str, dict[str, Any]] = {}
  for at, (renewed, row) in enumerate(ratios.items()):
    found[renewed] = {"kept": {}}
    for n, name in enumerate(names):
      # Samples stand by system, then by metric.
      own_S = samples_SF[:, at * len(names) + n]
      found[renewed][name] = vars(metrics.interval(row[name].value, own_S))
      kept = row[name].value / ratios[BEFORE][name].value
      # Sample by sample, since both are measured on the same users.
      found[renewed]["kept"][name] = vars(metrics.interval(kept, own_S / samples_SF[:, n]))
  return found


def format_table(found: Mapping[str, Any]) -> str:
  """Markdown of what `measure` returned."""
  names = list(found["renewals"][BEFORE]["kept"])
  rows = [["UA-SIDs", *names, *(f"kept of {name}" for name in names), "same code", "same prefix"]]
  for name, row in found["renewals"].items():
    cells = [report_tables.cell(row[metric]) for metric in names]
    cells += [report_tables.cell(row["kept"][metric]) for metric in names]
    rows.append([name, *cells, f"{row['codes']:.1%}", f"{row['prefixes']:.1%}"])
  about = f"{found['requests']:,} requests of {found['split']}; the same parameters throughout."
  return "\n".join([about, "", *report_tables.aligned(rows), ""])
