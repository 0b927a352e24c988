"""The table of a replay: ways to learn from a log that goes on, by what each predicts of it."""

import dataclasses
import datetime
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.evaluation import metrics, parts, plots, report_tables
from gr4ad_jax.evaluation.metrics import Ratio
from gr4ad_jax.evaluation.protocols import VALUE_PERCENTILE, EvalRequests
from gr4ad_jax.index.left_out import LeftOut

SHOWN = {
  "recall@10": "recall@10",
  "ndcg@10": "ndcg@10",
  "revenue@10": "revenue@10",
  "new recall@10": "recall@10 of targets that are new to the user, lists without seen ads",
  "young recall@50": "recall@50 of ads first heard of after the start",
}


@dataclasses.dataclass(frozen=True)
class Replayed:
  """R visits with a history and a target, and lists of them.

  Attributes:
    visit: [R] str, names.
    time: [R] int64, unix seconds.
    requests: what was taken.
    seen: ads that the user had taken before.
    lists: rows of ads by the name of an arm, [R, K] for each seed.
    known_ads: ads that were there at the start: the rows behind them are young.
  """

  visit: np.ndarray
  time: np.ndarray
  requests: EvalRequests
  seen: LeftOut
  lists: dict[str, tuple[np.ndarray, ...]]
  known_ads: int

  @classmethod
  def of(cls, groups: Iterable[Mapping[str, np.ndarray]]) -> "Replayed":
    """From the arrays of `learning.replay.Recorder`. Values count up to the 99th percentile.

    Raises:
      DataError: no visit has a history.
    """
    found = list(groups)
    columns = ("visit", "user", "time", "target_ad", "target_value", "seen")
    together = {name: np.concatenate([one[name] for one in found]) for name in columns}
    size_R, seen_R = (
      np.concatenate([np.diff(one[name]) for one in found])
      for name in ("target_start", "seen_start")
    )
    # A user without a history is no one whom a model could know.
    kept = np.flatnonzero(seen_R > 0)
    if not len(kept):
      raise DataError("no visit of the replay is of a user with a history")
    value = together["target_value"]
    # As in the protocols of fixed splits: one great order must not decide.
    clipped = np.minimum(value, np.percentile(value, VALUE_PERCENTILE)).astype(np.float32)
    # Users are drawn together by number; which number is no matter.
    number = np.unique(together["user"], return_inverse=True)[1].astype(np.int32)
    rows = np.arange(len(size_R), dtype=np.int32)
    # Groups were recorded one by one, each with bounds of its own. These are of all together.
    start = np.append(0, np.cumsum(size_R))
    whole = EvalRequests("live", rows, number, start, together["target_ad"], clipped)
    seen = LeftOut.of(len(rows), np.repeat(rows, seen_R), together["seen"])
    names = [name for name in found[0] if name.startswith("list_")]
    lists = {
      name.removeprefix("list_"): (np.concatenate([one[name] for one in found])[kept],)
      for name in names
    }
    requests = dataclasses.replace(whole.take(kept), request=np.arange(len(kept), dtype=np.int32))
    return cls(
      together["visit"][kept], together["time"][kept], requests, seen.take(kept), lists,
      int(found[0]["known_ads"]),
    )  # fmt: skip

  def take(self, rows: np.ndarray) -> "Replayed":
    """Some of the visits, in that order."""
    lists = {name: tuple(ad_RK[rows] for ad_RK in seeds) for name, seeds in self.lists.items()}
    return dataclasses.replace(
      self, visit=self.visit[rows], time=self.time[rows], requests=self.requests.take(rows),
      seen=self.seen.take(rows), lists=lists,
    )  # fmt: skip


def joined(arms: Mapping[str, Sequence[tuple[Replayed, str]]]) -> Replayed:
  """The visits that all arms have predicted, with their lists.

  Args:
    arms: name -> for each seed, what was replayed to a learner, and which of its lists is meant.

  Raises:
    DataError: there is no such visit.
  """
  every = [one for seeds in arms.values() for one, _ in seeds]
  # In one order for all arms, so that their rows are the same visits.
  common = sorted(set.intersection(*(set(one.visit.tolist()) for one in every)))
  if not common:
    raise DataError("the arms have no visit in common: they are of other replays")
  lists = {
    name: tuple(ad_RK for one, which in seeds for ad_RK in _taken(one, common).lists[which])
    for name, seeds in arms.items()
  }
  return dataclasses.replace(_taken(every[0], common), lists=lists)


def _taken(one: Replayed, visits: Sequence[str]) -> Replayed:
  """These visits, in this order."""
  place = {visit: row for row, visit in enumerate(one.visit.tolist())}
  return one.take(np.array([place[visit] for visit in visits]))


def ratios(found: Replayed, ad_RK: np.ndarray) -> dict[str, Ratio]:
  """The metrics of `SHOWN`, by visit; those of a part are 0 / 0 where a visit has none of it."""
  requests = found.requests
  ratio = metrics.per_request(ad_RK, requests, (10,))
  # Targets that the user had not taken before.
  fresh_P = found.seen.keeps(requests.target_row, requests.target_ad)
  # Ads that came later have rows behind those that were known.
  young_P = requests.target_ad >= found.known_ads
  for name, part_P, lists, k in (
    ("new recall@10", fresh_P, parts.left_of(ad_RK, found.seen), 10),
    ("young recall@50", young_P, ad_RK, 50),
  ):
    rows, some = parts.of_part(requests, part_P)
    if len(rows):
      of_part = metrics.per_request(lists[rows], some, (k,))
      ratio |= {name: parts.spread(of_part, rows, len(requests))[f"recall@{k}"]}
  return {name: ratio[name] for name in SHOWN if name in ratio}


def results(found: Replayed, seed: int = 0) -> dict:
  """Each arm's metrics with intervals, and those of every arm less the first, paired by user. Those
  of several seeds are averaged visit by visit.

  Returns:
    {"visits", "users", "seeds", "scores": [arm][metric], "ahead": [arm][metric], "months": [month]
    [arm][metric]}; scores and leads are mean, low and high.
  """
  of_arm = {
    name: metrics.mean_ratios([ratios(found, ad_RK) for ad_RK in seeds])
    for name, seeds in found.lists.items()
  }
  shown = list(next(iter(of_arm.values())))
  flat = [of_arm[name][metric] for name in of_arm for metric in shown]
  samples_SF = metrics.resample(flat, found.requests.user, seed=seed)
  first = next(iter(of_arm))
  scores: dict = {}
  ahead: dict = {}
  # Columns stand by arm, then by metric; the first arm's come first.
  for column, (name, metric) in enumerate((name, metric) for name in of_arm for metric in shown):
    draws_S = samples_SF[:, column]
    value = of_arm[name][metric].value
    scores.setdefault(name, {})[metric] = dataclasses.asdict(metrics.interval(value, draws_S))
    if name != first:
      # The same draws for both, so that what they share falls out.
      lead = metrics.interval(
        value - of_arm[first][metric].value, draws_S - samples_SF[:, shown.index(metric)]
      )
      ahead.setdefault(name, {})[metric] = dataclasses.asdict(lead)
  return {
    "visits": len(found.visit),
    "users": len(np.unique(found.requests.user)),
    "seeds": len(next(iter(found.lists.values()))),
    "scores": scores,
    "ahead": ahead,
    "months": _by_month(found, of_arm),
  }


def _by_month(found: Replayed, of_arm: Mapping[str, Mapping[str, Ratio]]) -> dict:
  # By UTC, as all of the log's times.
  month_R = np.array([
    f"{datetime.datetime.fromtimestamp(time, datetime.UTC):%Y-%m}" for time in found.time.tolist()
  ])  # fmt: skip
  tables: dict = {}
  for month in np.unique(month_R).tolist():
    here = month_R == month
    for name, ratio in of_arm.items():
      for metric, one in ratio.items():
        below = float(one.denominator_R[here].sum())
        # A month may hold no target of a part.
        if below:
          value = float(one.numerator_R[here].sum()) / below
          tables.setdefault(month, {}).setdefault(name, {})[metric] = value
  return tables


def format_markdown(found: Mapping) -> str:
  """The results as Markdown: the arms, and what each is ahead of the first."""
  arms = list(found["scores"])
  shown = list(found["scores"][arms[0]])
  rows = [["arm", *shown]]
  for name in arms:
    rows.append([name, *(report_tables.cell(found["scores"][name][metric]) for metric in shown)])
  lead = [[f"less {arms[0]}", *shown]]
  for name in arms[1:]:
    cells = [report_tables.cell(found["ahead"][name][metric], signed=True) for metric in shown]
    lead.append([name, *cells])
  words = "; ".join(f"{name}: {SHOWN[name]}" for name in shown if SHOWN[name] != name)
  seeds = f"Means of {found['seeds']} seeds; " if found["seeds"] > 1 else ""
  about = (
    f"{found['visits']} visits of {found['users']} users with a history, each predicted before it "
    f"is learned from. {seeds}95 % intervals by a paired bootstrap over users, 1,000 resamples."
  )
  lines = [about, "", *report_tables.aligned(rows), ""]
  if len(lead) > 1:
    lines += [*report_tables.aligned(lead), ""]
  return "\n".join([*lines, f"{words}.", ""])


def plot(found: Mapping, png_path: str, shown: Sequence[str] = ("revenue@10", "young recall@50")):
  """Draws metrics by month, a line an arm."""
  months = list(found["months"])
  with plots.panels(len(shown), (4.6 * len(shown), 3.2), png_path) as axes:
    for axis, metric in zip(axes, shown, strict=True):
      for name, color in zip(found["scores"], plots.COLORS, strict=False):
        points = [found["months"][month].get(name, {}).get(metric) for month in months]
        axis.plot(months, points, color=color, lw=1.6, marker="o", ms=3.5, label=name)
      axis.set_title(metric)
      axis.tick_params(axis="x", labelrotation=45)
    axes[0].legend(frameon=False)
