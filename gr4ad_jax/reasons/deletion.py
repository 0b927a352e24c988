"""Whether reasons are faithful: slots are deleted from the context, those named first first.

If the slots that a reason names do carry the ad, its log probability falls further without them
than without as many slots at random, or as many that attention points at (the test of
"comprehensiveness" of DeYoung et al., ERASER, 2020, arXiv:1911.03429, on slots in place of words).
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gr4ad_jax.config import Config
from gr4ad_jax.evaluation import metrics, protocols, report_tables
from gr4ad_jax.features.batches import PADDING, RequestBatch
from gr4ad_jax.reasons.carried import Carried, Scorer
from gr4ad_jax.reasons.reasoner import AT_ONCE, told_slots
from gr4ad_jax.requests import request_task
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.zoo import registry

COUNTS = (1, 2, 4, 8, 16)  # slots that are deleted
DRAWS = 4  # random orders an ad, whose drops are averaged
# What puts the events in an order.
REASONS = "reasons"
ATTENTION = "attention"
COPY = "copy attention"
RANDOM = "random"


def measure(
  config: Config,
  inputs: Inputs,
  lists: int = 500,
  split: str = "test",
  seed: int = 0,
  told: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
  """How far log p of each list's first three ads falls, by what was deleted.

  Args:
    config: of a trained run.
    inputs: its data, tokenizer and features.
    lists: how many requests of the split are looked at; drawn without replacement.
    split: 'valid' or 'test'.
    seed: of the draw of requests and of the random orders.
    told: hears how many lists are done, and of how many.

  Returns:
    For JSON: `lists`, `ads` and `counts`; `drop[method]` and `ahead[method]`, for each count an
    interval (mean, low, high) in nats: the mean drop, and how much further it falls by reasons than
    by that method. 95 %, by a bootstrap over users. `asked`: of the ads, what share has the same
    slots named as if the model were asked about every slot (`same`), and the most that a slot which
    is not named carries (`missed`, nats).

  Raises:
    TypeError: a model that gives no reasons.
  """
  model = registry.build(config, len(inputs.dataset.ads))
  scorer = Scorer(model, inputs.ecpm)
  every = Scorer(model, inputs.ecpm, asked=None)
  params = request_task.load_params(config, model)
  requests = protocols.eval_requests(inputs.dataset, split, config.data.target_behavior)
  rng = np.random.default_rng(seed)
  requests = requests.take(np.sort(rng.permutation(len(requests))[:lists]))
  contexts = inputs.contexts(config, split)
  ranker = request_task.make_ranker(model, inputs.index, inputs.ecpm, config.search)
  found = ranker.rank(params, contexts, requests.request, AT_ONCE)
  variables = {"params": params}
  # A second forward that keeps the attention weights, which search never does.
  looks = jax.jit(
    lambda *inputs: model.apply(*inputs, mutable=["intermediates"])[1]["intermediates"]
  )
  drops = []
  missed = []
  for r, request in enumerate(requests.request):
    batch = contexts.batch(np.array([request]))
    # A list that ran short is filled up with its first ad, whose drops then count more.
    row_M = np.where(found.ad_RK[r] >= 0, found.ad_RK[r], found.ad_RK[r, 0])
    codes_MT = inputs.index.codes_NT[row_M]
    attention_MS = mean_attention(jax.device_get(looks(variables, batch, codes_MT[None])))
    carried = scorer.carried(variables, batch, codes_MT)
    missed += _missed(carried, every.carried(variables, batch, codes_MT))
    drops.append(_drops(carried, scorer, variables, batch, codes_MT, attention_MS, rng))
    told(r + 1, len(requests))
  found = _table({name: np.stack([d[name] for d in drops]) for name in drops[0]}, requests.user)
  same = float(np.mean([nats == 0 for nats in missed]))
  return found | {"asked": {"same": same, "missed": float(max(missed))}}


def mean_attention(looks: Any) -> np.ndarray:
  """The decoder's attention to the slots, mean over layers, levels and heads: [M, S].

  Args:
    looks: the intermediates of a forward of one request: of each block of the decoder what it
      noted at each call, [1, M, T, S + 1] with the profile first.
  """
  by_block = []
  for calls in (block["cross"] for block in looks["decoder"].values()):
    # A late block is called for the first level, for the others, and a third time for the branch
    # of training, which has nothing to do with an ad. A lazy one is called once.
    some = [np.asarray(call)[0] for call in calls[:2]]
    M = max(len(call) for call in some)
    # (1, T, S + 1) of what all ads share stands for each of the M.
    spread = [np.broadcast_to(call, (M, *call.shape[1:])) for call in some]
    by_block.append(np.concatenate(spread, axis=1).mean(axis=1))
  # The first key is the profile, which is no slot.
  return np.mean(np.broadcast_arrays(*by_block), axis=0)[:, 1:]


def _missed(some: Carried, every: Carried) -> list[float]:
  """For each ad, the most that a slot carries which is told where all slots were asked about, and
  is not told here; 0: there is none. Nats.
  """
  most = []
  for slot_S, some_S in zip(every.slot_logp_MS, some.slot_logp_MS, strict=True):
    named = told_slots(slot_S)
    left = sorted(set(named) - set(told_slots(np.where(some.asked_S, some_S, -np.inf))))
    most.append(float(slot_S[left].max(initial=0)))
  return most


def _drops(
  carried: Carried,
  scorer: Scorer,
  variables: Any,
  batch: RequestBatch,
  codes_MT: np.ndarray,
  attention_MS: np.ndarray,
  rng: np.random.Generator,
) -> dict[str, np.ndarray]:
  """Mean drop of log p over the ads of one list: {method: [len(COUNTS)]}."""
  M, S = carried.slot_logp_MS.shape
  real_S = batch.slot_kind_BS[0] != PADDING
  weight = {
    REASONS: carried.slot_logp_MS,
    ATTENTION: attention_MS,
    COPY: np.broadcast_to(carried.copy_attention_S, (M, S)),
  } | {(RANDOM, draw): rng.random((M, S)) for draw in range(DRAWS)}
  # A version of the context for each method, ad and count.
  # Padding goes to the end of every order: deleting it would change nothing.
  order = {
    name: np.argsort(np.where(real_S, -x_MS, np.inf), axis=1, kind="stable")
    for name, x_MS in weight.items()
  }
  # The inverse of each order: the place of every slot.
  place = {name: np.argsort(order_MS, axis=1) for name, order_MS in order.items()}
  # The first n slots are deleted, the others kept.
  kept = np.stack([place_MS >= n for place_MS in place.values() for n in COUNTS])
  logp_RM = scorer.scores(variables, batch, codes_MT, kept.reshape(-1, S)).prefix_logp_RMT[..., -1]
  # Rows come in the order (method, count, ad); each is read for its own ad.
  logp_XNM = logp_RM.reshape(len(order), len(COUNTS), M, M)[:, :, np.arange(M), np.arange(M)]
  drop = dict(zip(order, (carried.logp_M - logp_XNM).mean(axis=-1), strict=True))
  found = {name: drop[name] for name in (REASONS, ATTENTION, COPY)}
  return found | {RANDOM: np.mean([drop[RANDOM, draw] for draw in range(DRAWS)], axis=0)}


def _table(drop: dict[str, np.ndarray], user_R: np.ndarray) -> dict[str, Any]:
  """Intervals of the mean drops [R, counts], and of their differences, all on the same draws."""
  one_R = np.ones(len(user_R))
  shown = {("drop", name): x_RN for name, x_RN in drop.items()}
  shown |= {("ahead", name): drop[REASONS] - x_RN for name, x_RN in drop.items() if name != REASONS}
  columns = [
    metrics.Ratio(x_R.astype(np.float64), one_R) for x_RN in shown.values() for x_R in x_RN.T
  ]
  samples_SF = metrics.resample(columns, user_R)
  found: dict[str, Any] = {"drop": {}, "ahead": {}}
  for at, (what, name) in enumerate(shown):
    begin = at * len(COUNTS)
    found[what][name] = [
      vars(metrics.interval(columns[begin + n].value, samples_SF[:, begin + n]))
      for n in range(len(COUNTS))
    ]
  return {"lists": len(user_R), "ads": AT_ONCE, "counts": list(COUNTS)} | found


def format_table(found: dict[str, Any]) -> str:
  """Markdown of what `measure` returned."""
  counts = [str(count) for count in found["counts"]]
  rows = [["log p falls by, without the first", *counts]]
  for name, row in found["drop"].items():
    rows.append([name, *(report_tables.cell(score) for score in row)])
  for name, row in found["ahead"].items():
    cells = (report_tables.cell(score, score["low"] > 0, signed=True) for score in row)
    rows.append([f"{REASONS} minus {name}", *cells])
  about = (
    f"{found['lists']:,} lists, the first {found['ads']} ads of each: how far log p of an ad falls "
    "(nats) when slots of its context are deleted, the first ones by each order. Means with 95 % "
    "intervals; differences are paired, and bold where the whole interval is above 0."
  )
  lines = [about, "", *report_tables.aligned(rows), ""]
  # Figures of before slots were chosen do not tell of it.
  if "asked" in found:
    lines += [_asked(found["asked"]), ""]
  return "\n".join(lines)


def _asked(found: dict[str, float]) -> str:
  return (
    f"Of {found['same']:.2%} of the ads, reasons name the slots that they would name had the model "
    f"been asked about every slot. The most that a slot carries which is not named for that: "
    f"{found['missed']:.2g} nats."
  )
