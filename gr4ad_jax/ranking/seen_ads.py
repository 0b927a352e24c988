"""What becomes of ads that the user took before: left in the lists, left out, or under a learned
bias.
"""

import dataclasses

from gr4ad_jax.config import Config
from gr4ad_jax.data.schema import Dataset
from gr4ad_jax.evaluation import parts
from gr4ad_jax.evaluation.protocols import EvalRequests
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.zoo import registry


def treatment(config: Config) -> str:
  """'masked', 'biased' or 'left', as a table of results says it."""
  # Only a model that reads the knob can have learned a bias.
  biased = config.model.history_bias and "history_bias" not in registry.unread(config)
  return "biased" if config.search.seen_ads == "left" and biased else config.search.seen_ads


def left_out(config: Config, dataset: Dataset, requests: EvalRequests) -> LeftOut | None:
  """What each request's list does without, by --seen_ads and --seen_days; None: nothing."""
  if config.search.seen_ads == "left":
    return None
  return parts.seen_before(dataset, requests, config.search.seen_days)


def unseen(config: Config) -> Config:
  """The same run, whose lists hold no ad that the user has ever taken."""
  # 0 days: of any age.
  return _with(config, "masked", 0.0)


def treated_as(other: Config, config: Config) -> Config:
  """`other`, with the treatment of seen ads that `config` has."""
  return _with(other, config.search.seen_ads, config.search.seen_days)


def _with(config: Config, seen: str, days: float) -> Config:
  search = dataclasses.replace(config.search, seen_ads=seen, seen_days=days)
  return dataclasses.replace(config, search=search)
