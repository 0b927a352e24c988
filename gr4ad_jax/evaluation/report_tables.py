"""Results of systems under a protocol: as JSON, and as a table to read."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from gr4ad_jax import files
from gr4ad_jax.data import schema
from gr4ad_jax.evaluation import metrics, protocols

Rankings = (
  np.ndarray | Sequence[np.ndarray]
)  # [R, K] ad rows, or one such array for each training seed


def results(
  dataset: schema.Dataset,
  split: str,
  systems: Mapping[str, Rankings],
  target_behavior: str = "",
  skipped: Mapping[str, str] | None = None,
  seen: Mapping[str, str] | None = None,
  seed: int = 0,
) -> dict:
  """Scores systems on the requests of a split, all on the same resamples of the users.

  Args:
    dataset: a prepared data set.
    split: 'valid' or 'test'.
    systems: name -> rankings of `protocols.eval_requests(dataset, split, target_behavior)`, at
      least as deep as the protocol's largest K; several seeds are averaged request by request. The
      first system is the one that the others are compared with.
    target_behavior: shallowest behaviour that counts as a hit; empty: any.
    skipped: systems that could not be run -> reason.
    seen: systems that do not leave ads seen before as they are -> 'masked' or 'biased'.
    seed: seed of the resamples.

  Returns:
    A dict for JSON: dataset, split, protocol, users, requests; systems[name][metric] = {mean, low,
      high};
    ahead[name][metric], the first system minus this one, likewise; catalogue[name], seeds[name] and
    seen[name]; target_behavior and skipped.

  Raises:
    ValueError: no system, rankings that do not fit the requests, or an unknown name.
  """
  if not systems:
    raise ValueError("there is no system to score")
  protocol = protocols.protocol_of(dataset.name)
  requests = protocols.eval_requests(dataset, split, target_behavior)
  popularity_N = protocols.line_counts(dataset, split)
  by_seed = {name: _by_seed(rankings) for name, rankings in systems.items()}
  _check(by_seed, requests, max(protocol.ks), len(dataset.ads))
  ratios = {
    name: _mean_ratios([metrics.per_request(run, requests, protocol.ks) for run in runs])
    for name, runs in by_seed.items()
  }
  scores, ahead = _intervals(ratios, requests.user, seed)
  return {
    "dataset": dataset.name,
    "split": split,
    "protocol": protocol.text,
    "target_behavior": target_behavior or "any",
    "users": len(np.unique(requests.user)),
    "requests": len(requests),
    "systems": scores,
    "ahead": ahead,
    "catalogue": {
      name: _mean_dict([metrics.catalogue(run, popularity_N, protocol.ks) for run in runs])
      for name, runs in by_seed.items()
    },
    "seeds": {name: len(runs) for name, runs in by_seed.items()},
    "seen": {name: (seen or {}).get(name, protocol.seen) for name in systems},
    "skipped": dict(skipped or {}),
  }


def write_json(path: str, content: dict) -> None:
  """Writes `content` to `path` by way of a temporary file, so that a reader finds the old file
  or the whole new one.
  """
  files.write_json(path, content, summed=False, indent=2)


def write_text(path: str, text: str) -> None:
  """Writes `text` to `path`, whole or not at all."""
  files.write_text(path, text, summed=False)


def format_table(found: Mapping) -> str:
  """Markdown of what `results` returned: aligned columns, intervals in brackets, the best of
  each metric in bold.
  """
  systems = found["systems"]
  names = list(next(iter(systems.values())))
  best = {metric: max(row[metric]["mean"] for row in systems.values()) for metric in names}
  seeds, seen = found.get("seeds", {}), found.get("seen", {})
  rows = [["system", "seeds", "seen ads", *names]]
  for system, row in systems.items():
    cells = [cell(row[metric], row[metric]["mean"] == best[metric]) for metric in names]
    rows.append([system, str(seeds.get(system, "")), seen.get(system, ""), *cells])
  lines = [
    (
      f"{found['dataset']}, {found['split']}: {found['users']:,} users. Means with 95 % intervals; "
      "best in bold."
    ),
    "",
    *aligned(rows),
  ]
  if found.get("ahead"):
    rows = [[f"{next(iter(systems))} minus", *names]]
    for system, row in found["ahead"].items():
      rows.append(
        [system, *(cell(row[metric], row[metric]["low"] > 0, signed=True) for metric in names)]
      )
    lines += [
      "",
      "Paired differences, in bold where the whole interval is above 0.",
      "",
      *aligned(rows),
    ]
  lines += [f"\nLeft out: {name}: {reason}." for name, reason in found.get("skipped", {}).items()]
  return "\n".join(lines) + f"\n\nProtocol: {found['protocol']}.\n"


def _by_seed(rankings: Rankings) -> list[np.ndarray]:
  if isinstance(rankings, np.ndarray) and rankings.ndim == 2:
    return [rankings]
  return [np.asarray(run) for run in rankings]


def _check(
  by_seed: Mapping[str, list[np.ndarray]], requests: protocols.EvalRequests, k: int, num_ads: int
) -> None:
  for name, runs in by_seed.items():
    for rankings_RK in runs:
      try:
        metrics.check_rankings(rankings_RK, requests, k, num_ads)
      except ValueError as error:
        raise ValueError(f"system {name!r}: {error}") from error


def _mean_ratios(runs: Sequence[Mapping[str, metrics.Ratio]]) -> dict[str, metrics.Ratio]:
  """Averages the numerators over seeds; the denominators do not depend on the ranking."""
  return {
    metric: metrics.Ratio(
      np.mean([run[metric].numerator_R for run in runs], axis=0), ratio.denominator_R
    )
    for metric, ratio in runs[0].items()
  }


def _mean_dict(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
  return {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}


def _intervals(
  ratios: Mapping[str, Mapping[str, metrics.Ratio]], user_R: np.ndarray, seed: int
) -> tuple[dict, dict]:
  """Intervals of every system, and of the first system minus each other one."""
  flat = [(system, metric) for system, row in ratios.items() for metric in row]
  samples_SF = metrics.resample(
    [ratios[system][metric] for system, metric in flat], user_R, seed=seed
  )
  column = {key: samples_SF[:, f] for f, key in enumerate(flat)}
  first = next(iter(ratios))
  scores, ahead = {}, {}
  for system, metric in flat:
    value = ratios[system][metric].value
    scores.setdefault(system, {})[metric] = dataclasses.asdict(
      metrics.interval(value, column[system, metric])
    )
    if system != first:
      lead = metrics.interval(
        ratios[first][metric].value - value, column[first, metric] - column[system, metric]
      )
      ahead.setdefault(system, {})[metric] = dataclasses.asdict(lead)
  return scores, ahead


def cell(score: Mapping[str, float], bold: bool = False, signed: bool = False) -> str:
  """A value with its interval: `.2797 [.2700, .2894]`, in bold or with signs where asked."""
  mean, low, high = (_short(score[part], signed) for part in ("mean", "low", "high"))
  return f"**{mean}** [{low}, {high}]" if bold else f"{mean} [{low}, {high}]"


def _short(value: float, signed: bool) -> str:
  """Four decimals without the leading zero: .2797, +.0041."""
  text = f"{value:{'+' if signed else ''}.4f}"
  return text.replace("0.", ".", 1) if abs(value) < 1 else text  # 10.5 keeps its zero


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
  """Markdown rows, the first a header, padded to equal column widths."""
  widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
  cells = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
  padded = [f"| {' | '.join(row)} |" for row in cells]
  return [padded[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *padded[1:]]
