"""Which settings contradict each other: rules over the knobs of a config.

A rule is whether it holds, the knob that is blamed where it does not, and what is allowed.
"""

import datetime
import math
from collections.abc import Iterable
from typing import Any

from gr4ad_jax.config.data import DataConfig
from gr4ad_jax.config.training import TrainConfig
from gr4ad_jax.knobs import shown

Rules = Iterable[tuple[bool, str, str]]
BEHAVIORS = {
  "online_retail": ("purchase",),
  "complete_journey": ("purchase",),
  "amazon_reviews": ("review",),
}  # of data sets that have no --behaviors
_WITHOUT_PATHS = ("online_retail", "complete_journey")  # their files come with a package


def of_training(training: TrainConfig) -> Rules:
  """Rules of every family."""
  return (
    (
      len(training.period) == 2 and training.period[0] < training.period[-1],
      "period",
      "begin and end, as 0,0.8",
    ),
    (
      _is_window(training),
      "profile_steps",
      "two numbers of steps, the first smaller, as 10:15; or empty",
    ),
    (
      training.batch_size % training.accumulate == 0,
      "accumulate",
      f"a divisor of --batch_size={training.batch_size}",
    ),
  )


def of_requests(config: Any) -> Rules:
  """Rules of the request models, over a `Config`."""
  data = config.data
  model = config.model
  levels = len(config.sid.codebooks)
  return (
    *_of_data(data),
    *_of_trying(config),
    *_of_examples(config),
    *_of_held_out(config),
    *_of_retriever(config),
    (levels >= 2, "codebooks", "2 levels or more: the last is hashed"),
    (
      not (config.sid.append and config.sid.refresh),
      "refresh",
      "nothing beside --append: published codes stay, or are fitted anew",
    ),
    # A UA-SID is packed into one int64.
    (math.prod(config.sid.codebooks) < 1 << 63, "codebooks", "a product below 2^63"),
    (
      model.lazy_layers < model.layers,
      "lazy_layers",
      f"0 to {model.layers - 1}, as --layers={model.layers}",
    ),
    (
      model.kv_layers <= model.layers,
      "kv_layers",
      f"1 to {model.layers}, as --layers={model.layers}",
    ),
    (model.width % model.heads == 0, "heads", f"a divisor of --width={model.width}"),
    (
      model.cross_attention != "fused" or model.kv_split == 1,
      "cross_attention",
      "'auto' or 'plain', as --kv_split=2: values are not the keys",
    ),
    (model.heads % model.kv_groups == 0, "kv_groups", f"a divisor of --heads={model.heads}"),
    (
      len(config.search.beams) == levels,
      "beams",
      f"{levels} widths, one a level of --codebooks={shown(config.sid.codebooks)}",
    ),
    (
      config.search.reranker != "neighbors" or config.search.order == "likelihood",
      "order",
      "only 'likelihood', as --reranker=neighbors",
    ),
    (
      config.search.order == "likelihood" or _has_values(config),
      "order",
      "only 'likelihood', as --lambda_ecpm=0: the eCPM is not learned",
    ),
  )


def _has_values(config: Any) -> bool:
  """Whether the eCPM is learned. A run that starts from another one has that one's head."""
  return bool(config.objective.lambda_ecpm or config.training.init_from)


def _of_trying(config: Any) -> Rules:
  """Rules of the place for trying."""
  return (
    (
      not config.serving.explore_spread or config.serving.explore,
      "explore_spread",
      "only 0, as --noexplore: no place is drawn",
    ),
    (
      not config.serving.explore_spread or _has_values(config),
      "explore_spread",
      "only 0, as --lambda_ecpm=0: the eCPM is not learned",
    ),
  )


def _of_data(data: DataConfig) -> Rules:
  """Rules of the data alone."""
  behaviors = BEHAVIORS.get(data.dataset, data.behaviors)
  return (
    (
      data.dataset in _WITHOUT_PATHS or bool(data.ads_path or data.examples_path),
      "ads_path",
      f"--dataset={data.dataset} needs an ad table",
    ),
    (
      data.dataset in _WITHOUT_PATHS or bool(data.events_path or data.examples_path),
      "events_path",
      f"--dataset={data.dataset} needs an event log",
    ),
    (
      not data.promotions or data.dataset == "complete_journey",
      "promotions",
      f"only false, as --dataset={data.dataset} tells nothing of them",
    ),
    (
      not data.promotions or not data.until,
      "promotions",
      f"only false, as --until={data.until} changes which ads there are",
    ),
    (
      data.behavior_features or not data.ad_age,
      "ad_age",
      "only false, as --nobehavior_features: a log without a clock has no ages",
    ),
    (_is_date(data.until), "until", "a date, as 2010-12-01, or empty"),
    (
      len(set(data.behaviors)) == len(data.behaviors),
      "behaviors",
      "distinct names, shallowest first",
    ),
    (
      data.target_behavior in ("", *behaviors),
      "target_behavior",
      f"a behaviour of {data.dataset}, one of {shown(behaviors)}; or empty",
    ),
    (
      data.on_unknown_ad == "error" or data.dataset == "ad_log",
      "on_unknown_ad",
      f"only 'error', as --dataset={data.dataset}",
    ),
  )


def _of_held_out(config: Any) -> Rules:
  """Rules of runs that must not know some ads."""
  share = config.data.held_out_ads
  sid = config.sid
  published = sid.append or sid.refresh
  return (
    (
      not share or not published,
      "held_out_ads",
      f"only 0, as the UA-SIDs of {published} may know those ads' events",
    ),
    (
      not share or not sid.swing_path,
      "held_out_ads",
      f"only 0, as --swing_path={sid.swing_path} may know those ads' events",
    ),
    (
      not share or not sid.encoder.endswith(".npy"),
      "held_out_ads",
      f"only 0, as --encoder={sid.encoder} has the ads in table order",
    ),
    (
      not share or "test" not in config.training.fit_splits,
      "held_out_ads",
      f"only 0, as --fit_splits={config.training.fit_splits} learns from those ads' events in test",
    ),
    (
      not share or not config.data.examples_path,
      "held_out_ads",
      f"only 0, as --examples_path={config.data.examples_path} was made of all ads' events",
    ),
  )


def _of_retriever(config: Any) -> Rules:
  """Rules of runs whose slots two towers fill."""
  data = config.data
  return (
    (
      not data.retriever or data.neighbor_slots > 0,
      "neighbor_slots",
      f"1 or more, as --retriever={data.retriever} fills them",
    ),
    (
      not data.retriever or not data.examples_path,
      "retriever",
      f"only empty, as --examples_path={data.examples_path} holds co-visit neighbours",
    ),
    (
      not data.retriever or not config.training.init_from,
      "retriever",
      f"only empty, as the run in --init_from={config.training.init_from} brings its features",
    ),
  )


def _is_window(training: TrainConfig) -> bool:
  """Whether --profile_steps is empty or a:b with a < b."""
  try:
    return bool(training.profiled)
  except ValueError:
    return False


def _is_date(text: str) -> bool:
  """Whether --until is empty or YYYY-MM-DD."""
  try:
    return not text or bool(datetime.date.fromisoformat(text))
  except ValueError:
    return False


def _of_examples(config: Any) -> Rules:
  """Rules of runs on a folder of examples, and of runs on none."""
  data = config.data
  if not data.examples_path:
    return (
      (config.training.loader_processes == 0, "loader_processes", "0 without --examples_path"),
    )
  words = f"as --examples_path={data.examples_path}"
  search = config.search
  return (
    (data.dataset == "ad_log", "dataset", f"only 'ad_log', {words}"),
    (not data.until, "until", f"only empty, {words}: examples are made of a whole log"),
    (not data.ad_age, "ad_age", f"only false, {words}: examples hold no ages"),
    (config.objective.objective == "vsl", "objective", f"only 'vsl', {words}"),
    (search.reranker == "none", "reranker", f"only 'none', {words}"),
  )
