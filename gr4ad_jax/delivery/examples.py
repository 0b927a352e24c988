"""What a trained run is worth, in words: its table, and a few customers' recommendations beside
what they took next.
"""

from collections.abc import Sequence

import jax
import numpy as np

from gr4ad_jax.answering import printed
from gr4ad_jax.data.schema import Dataset
from gr4ad_jax.decoding.ranker import Ranking
from gr4ad_jax.evaluation import protocols, report_tables
from gr4ad_jax.ranking import scoring
from gr4ad_jax.requests.request_task import RequestTask


def report(
  task: RequestTask, split: str, beside: Sequence[str] = (), width: int = 0, users: int = 0
) -> str:
  """Scores a trained run of the request models, and writes eval/ in its workdir.

  Args:
    task: of the run.
    split: 'valid' or 'test'.
    beside: workdirs of other runs for the same table; see `scoring.group_runs`.
    width: columns of a terminal that examples are shown on; 0: none are shown.
    users: how many users are scored; 0: all. Only without examples.

  Returns:
    The table, then the examples; empty on all processes of a job but the first.

  Raises:
    As `scoring.evaluate_run`.
  """
  if jax.process_index():
    return ""
  if width and not task.inputs.has_targets(task.config, split):
    return "nothing to evaluate on: no user has the three visits that it takes"
  found, ranking = scoring.evaluate_run(task.config, task.inputs, split, beside, users)
  table = report_tables.format_table(found)
  if not width:
    return table
  dataset = task.inputs.dataset
  behavior = task.config.data.target_behavior
  return f"{table}\n{describe(dataset, ranking, behavior, width=width)}"


def describe(
  dataset: Dataset,
  ranking: Ranking,
  target_behavior: str = "",
  users: int = 3,
  k: int = 5,
  width: int = 120,
) -> str:
  """Text of `users` customers of the test split: lately taken, recommended, and a star where it was
  taken next.

  Args:
    dataset: the data.
    ranking: of the test split's requests, in their order.
    target_behavior: as in the evaluation.
    users: customers shown, evenly spread over the split.
    k: ads shown a customer.
    width: columns of a line at most, 60 or more; ads are named by id and text, and texts are cut.
  """
  requests = protocols.eval_requests(dataset, "test", target_behavior)
  events = dataset.events
  ads = dataset.ads
  lines = []
  # Spread over the split, without the very first and the very last.
  for row in np.unique(np.linspace(0, len(requests) - 1, users + 2).astype(int)[1:-1]):
    request = requests.request[row]
    # A visit's events stand together, and the first of them is its beginning.
    moment = events.time[np.searchsorted(events.request, request)]
    # Events of earlier visits, so far as they lay before this one began.
    before = np.flatnonzero(
      (events.user == requests.user[row]) & (events.request < request) & (events.time <= moment)
    )
    taken = set(
      requests.target_ad[requests.target_start[row] : requests.target_start[row + 1]].tolist()
    )
    visits = len(np.unique(events.request[before]))
    customer = printed.plain(str(events.user_id[requests.user[row]]), width - 32)
    lines.append(f"\ncustomer {customer}, {visits} visits so far")
    # Latest first, each ad once.
    lately = list(dict.fromkeys(events.ad[before][::-1].tolist()))
    names = [printed.ad_name(ads.ad_id[ad], ads.text[ad], width // 2) for ad in lately[:k]]
    lines.append(printed.plain("  lately: " + "; ".join(names), width))
    for ad, logp, value in zip(
      ranking.ad_RK[row, :k], ranking.logp_RK[row], ranking.value_RK[row], strict=False
    ):
      if ad >= 0:
        star = "*" if ad in taken else " "
        again = "again" if ad in lately else "new  "
        figures = f"(p {np.exp(logp):.3f}, eCPM {value:.2f})"
        name = printed.ad_name(ads.ad_id[ad], ads.text[ad], width - len(figures) - 12)
        lines.append(f"  {star} {again} {name}  {figures}")
  return "\n".join([*lines, "\n* taken on the next visit"])
