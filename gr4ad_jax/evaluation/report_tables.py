"""Results of systems under a protocol: as JSON, and as a table to read."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from gr4ad_jax import files
from gr4ad_jax.data import schema
from gr4ad_jax.evaluation import exposure, metrics, parts, protocols

# [R, K] ad rows, or one such array for each training seed.
Rankings = np.ndarray | Sequence[np.ndarray]


def results(
  dataset: schema.Dataset,
  split: str,
  systems: Mapping[str, Rankings],
  target_behavior: str = "",
  skipped: Mapping[str, str] | None = None,
  seen: Mapping[str, str] | None = None,
  seed: int = 0,
  unseen: Mapping[str, Rankings] | None = None,
  memory_RK: np.ndarray | None = None,
  requests: protocols.EvalRequests | None = None,
) -> dict:
  """Scores systems on the requests of a split, all on the same resamples of the users.

  Args:
    dataset: a prepared data set.
    split: 'valid' or 'test'.
    systems: name -> rankings of `protocols.eval_requests(dataset, split, target_behavior)`, at
      least as deep as the protocol's largest K. Several seeds are averaged request by request. The
      first system is the one that the others are compared with.
    target_behavior: shallowest behaviour that counts as a hit. Empty: any.
    skipped: systems that could not be run -> reason.
    seen: systems that do not leave ads seen before as they are -> 'masked' or 'biased'.
    seed: seed of the resamples.
    requests: those that the systems ranked, one or more; None: all of the split.
    unseen: the same systems' rankings, seeds in the same order, without ads seen before: what the
      part 'new' is scored by. A system that is missing is scored by what is left of its list.
    memory_RK: lists of the memory, by which targets are 'memory' or 'beyond'; None: no such parts.

  Returns:
    A dict for JSON. It has
    systems[name][part][metric]: {mean, low, high}, of each of `parts.SAYS` that has a target;
    ahead[name][part][metric]: likewise, the first system minus this one;
    targets[part]: {count, value}, shares of all targets;
    catalogue[name], seeds[name], seen[name]; dataset, split, protocol and the like.

  Raises:
    ValueError: no system, rankings that do not fit the requests, or an unknown name.
  """
  if not systems:
    raise ValueError("there is no system to score")
  protocol = protocols.protocol_of(dataset.name)
  if requests is None:
    requests = protocols.eval_requests(dataset, split, target_behavior)
  # All is checked before anything is scored: an error names its system at once.
  given = systems, unseen or {}
  by_seed, without = (_checked(x, requests, max(protocol.ks), len(dataset.ads)) for x in given)
  targets = parts.split(dataset, requests, memory_RK)
  about = requests, targets, parts.seen_before(dataset, requests), protocol.ks
  ratios = _ratios(by_seed, without, *about)
  scores, ahead = _intervals(ratios, requests.user, seed)
  return _about(dataset, split, target_behavior, requests) | {
    "systems": scores,
    "ahead": ahead,
    "targets": {name: _shares(requests, part_P) for name, part_P in targets.items()},
    "catalogue": _catalogue(dataset, split, by_seed, protocol.ks),
    "seeds": {name: len(runs) for name, runs in by_seed.items()},
    "seen": {name: (seen or {}).get(name, protocol.seen) for name in systems},
    "skipped": dict(skipped or {}),
  }


def _catalogue(
  dataset: schema.Dataset, split: str, by_seed: Mapping[str, list[np.ndarray]], ks: Sequence[int]
) -> dict[str, dict]:
  """What each system shows of the catalogue, the mean of its seeds."""
  popularity_N = protocols.line_counts(dataset, split)
  return {
    name: _mean_dict([metrics.catalogue(run, popularity_N, ks) for run in runs])
    for name, runs in by_seed.items()
  }


def _about(
  dataset: schema.Dataset, split: str, target_behavior: str, requests: protocols.EvalRequests
) -> dict:
  """What the figures are of, for `results`."""
  return {
    "dataset": dataset.name,
    "split": split,
    "protocol": protocols.protocol_of(dataset.name).text,
    "target_behavior": target_behavior or "any",
    "users": len(np.unique(requests.user)),
    "requests": len(requests),
  }


def _ratios(
  by_seed: Mapping[str, list[np.ndarray]],
  without: Mapping[str, list[np.ndarray]],
  requests: protocols.EvalRequests,
  targets: Mapping[str, np.ndarray],
  before: np.ndarray,
  ks: Sequence[int],
) -> dict[str, dict]:
  """Of each system, (part, metric) -> its ratio by request, the mean of the seeds."""
  ratios: dict[str, dict] = {name: {} for name in by_seed}
  for part, part_P in targets.items():
    for name, runs in by_seed.items():
      # What the user knows already may stand in no list, whatever the system does about it.
      if part == parts.NEW:
        runs = without.get(name) or [parts.left_of(run, before) for run in runs]
      mean = metrics.mean_ratios([_of_part(run, requests, part_P, ks) for run in runs])
      ratios[name] |= {(part, metric): ratio for metric, ratio in mean.items()}
  return ratios


def write_json(path: str, content: dict) -> None:
  """Writes `content` to `path`. A reader finds the old file or the whole new one."""
  files.write_json(path, content, summed=False, indent=2)


def write_text(path: str, text: str) -> None:
  """Writes `text` to `path`, whole or not at all."""
  files.write_text(path, text, summed=False)


def format_table(found: Mapping) -> str:
  """Markdown of what `results` returned, with a table for each part.

  Columns are aligned, intervals stand in brackets, and the best of each metric is bold.
  """
  lines = [
    f"{found['dataset']}, {found['split']}: {found['users']:,} users. Means with 95 % intervals; "
    "best in bold."
  ]
  for part in next(iter(found["systems"].values())):
    lines += ["", _heading(found, part), "", *_part_table(found, part)]
  if told := found.get("exposure"):
    lines += ["", "**exposure** Whom the first places go to, whatever was taken.", ""]
    lines += aligned(exposure.format_table(told["systems"], told["k"]))
  lines += [f"\nLeft out: {name}: {reason}." for name, reason in found.get("skipped", {}).items()]
  return "\n".join(lines) + f"\n\nProtocol: {found['protocol']}.\n"


def _heading(found: Mapping, part: str) -> str:
  """What a part is, and how much of all targets and of their value it has."""
  share = found.get("targets", {}).get(part)
  says = f"**{part}** {parts.SAYS[part]}"
  if share is None or part == parts.ALL:
    return says
  value = f", {share['value']:.1%} of the value" if share["value"] else ""
  return f"{says} {share['count']:.1%} of the targets{value}."


def _part_table(found: Mapping, part: str) -> list[str]:
  """Lines of a part's two tables: all systems, and the first one's lead over each other."""
  systems = {name: row[part] for name, row in found["systems"].items()}
  names = list(next(iter(systems.values())))
  # Compared before rounding: of two that are printed alike only the better one is bold.
  best = {metric: max(row[metric]["mean"] for row in systems.values()) for metric in names}
  seeds = found.get("seeds", {})
  seen = found.get("seen", {})
  rows = [["system", "seeds", "seen ads", *names]]
  for system, row in systems.items():
    cells = [cell(row[metric], row[metric]["mean"] == best[metric]) for metric in names]
    treated = "masked" if part == parts.NEW else seen.get(system, "")
    rows.append([system, str(seeds.get(system, "")), treated, *cells])
  lines = aligned(rows)
  if found.get("ahead"):
    rows = [[f"{next(iter(systems))} minus", *names]]
    for system, row in found["ahead"].items():
      scores = [row[part][metric] for metric in names]
      rows.append([system, *(cell(score, score["low"] > 0, signed=True) for score in scores)])
    words = "Paired differences, in bold where the whole interval is above 0."
    lines += ["", words, "", *aligned(rows)]
  return lines


def _by_seed(rankings: Rankings) -> list[np.ndarray]:
  """A list of rankings, one a seed, whichever form they came in."""
  if isinstance(rankings, np.ndarray) and rankings.ndim == 2:
    return [rankings]
  return [np.asarray(run) for run in rankings]


def _checked(
  systems: Mapping[str, Rankings], requests: protocols.EvalRequests, k: int, num_ads: int
) -> dict[str, list[np.ndarray]]:
  """`_by_seed` of each. Raises ValueError that names the system whose lists do not fit."""
  by_seed = {name: _by_seed(rankings) for name, rankings in systems.items()}
  for name, runs in by_seed.items():
    for rankings_RK in runs:
      try:
        metrics.check_rankings(rankings_RK, requests, k, num_ads)
      except ValueError as error:
        raise ValueError(f"system {name!r}: {error}") from error
  return by_seed


def _of_part(
  ranking_RK: np.ndarray, requests: protocols.EvalRequests, part_P: np.ndarray, ks: Sequence[int]
) -> dict[str, metrics.Ratio]:
  """Metrics of a part of the targets, [R]: a request without one counts for nothing."""
  rows, some = parts.of_part(requests, part_P)
  return parts.spread(metrics.per_request(ranking_RK[rows], some, ks), rows, len(requests))


def _shares(requests: protocols.EvalRequests, part_P: np.ndarray) -> dict[str, float]:
  """A part's share of the targets, and of their value."""
  value_P = requests.target_value.astype(np.float64)
  # 0 of a log without values; the heading then leaves the value out.
  value = float(value_P[part_P].sum() / value_P.sum()) if value_P.any() else 0.0
  return {"count": float(part_P.mean()), "value": value}


def _mean_dict(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
  return {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}


def _intervals(
  ratios: Mapping[str, Mapping[tuple[str, str], metrics.Ratio]], user_R: np.ndarray, seed: int
) -> tuple[dict, dict]:
  """Intervals of every system, and of the first system minus each other one.

  All come from the same resamples, so a difference is taken draw by draw. Its interval is mostly
  narrower than two separate ones would allow.

  Returns:
    Two dicts by [system][part][metric].
  """
  # One matrix of all metrics of all systems: one set of draws serves them, a column each.
  flat = [(system, key) for system, row in ratios.items() for key in row]
  samples_SF = metrics.resample([ratios[system][key] for system, key in flat], user_R, seed=seed)
  column = {key: samples_SF[:, f] for f, key in enumerate(flat)}
  first = next(iter(ratios))
  scores: dict = {}
  ahead: dict = {}
  for system, (part, metric) in flat:
    key = part, metric
    value = ratios[system][key].value
    own = scores.setdefault(system, {}).setdefault(part, {})
    own[metric] = dataclasses.asdict(metrics.interval(value, column[system, key]))
    if system != first:
      # The interval of the draws' differences, not the difference of two intervals.
      lead = metrics.interval(
        ratios[first][key].value - value, column[first, key] - column[system, key]
      )
      ahead.setdefault(system, {}).setdefault(part, {})[metric] = dataclasses.asdict(lead)
  return scores, ahead


def cell(score: Mapping[str, float], bold: bool = False, signed: bool = False) -> str:
  """A value with its interval: `.2797 [.2700, .2894]`, in bold or with signs where asked."""
  mean, low, high = (_short(score[part], signed) for part in ("mean", "low", "high"))
  return f"**{mean}** [{low}, {high}]" if bold else f"{mean} [{low}, {high}]"


def _short(value: float, signed: bool) -> str:
  """Four decimals without the leading zero: .2797, +.0041."""
  text = f"{value:{'+' if signed else ''}.4f}"
  return text.replace("0.", ".", 1) if abs(value) < 1 else text  # the 0 of 10.5 stays


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
  """Markdown rows, the first a header, padded to equal column widths."""
  # A column is as wide as its widest cell, the header among them.
  widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
  cells = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
  padded = [f"| {' | '.join(row)} |" for row in cells]
  return [padded[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *padded[1:]]
