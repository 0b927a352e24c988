"""Ads of which nobody knows an event before test (--held_out_ads): what a run makes of new ads.

The ads stay in the table, with their text and what else it says of them. Their events are gone
from train and valid, so no history, neighbour, count or target there has them. In test they are
what they were: there they are to be found.
"""

import dataclasses

import numpy as np

from gr4ad_jax.builders import reports, sales
from gr4ad_jax.config import Config, ConfigError, load_config
from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import DataError, Dataset

_SEED = 0  # the same ads for every run, so that runs can be compared


def drawn(num_ads: int, share: float) -> np.ndarray:
  """Which ads are held out, [N] bool: a share of them, and at least one unless the share is 0."""
  held_N = np.zeros(num_ads, bool)
  if share:
    number = max(round(share * num_ads), 1)
    held_N[np.random.default_rng(_SEED).permutation(num_ads)[:number]] = True
  return held_N


def without(dataset: Dataset, share: float) -> Dataset:
  """The data set whose held-out ads have events in visits of test alone.

  Visits and splits stay what they were; a visit of held-out ads alone is gone. Prices and dates
  that were made from sales are made anew, so a held-out ad has none.

  Args:
    dataset: as it was read.
    share: of the ads that are held out.

  Raises:
    DataError: there is nothing left to learn from.
  """
  events = dataset.events
  held_N = drawn(len(dataset.ads), share)
  # By the visit, not by the event: what follows a visit of train late, in a later split, is a
  # target of that visit.
  in_test_E = visits.split_of_requests(events) == visits.TEST
  kept_E = in_test_E | ~held_N[events.ad]
  if not (kept_E & (events.split == visits.TRAIN)).any():
    raise DataError(
      f"--held_out_ads={share} is not allowed: {dataset.name} has no other event in train"
    )
  # Visits are put in order again: the event that opened one may be gone.
  log = visits.ordered_log(events.user_id, **events.columns(kept_E))
  ads = sales.with_sales(dataset.ads, log) if dataset.priced_by_sales else dataset.ads
  report = reports.of_rest(dataset, log, len(ads), "of held-out ads")
  return dataclasses.replace(dataset, ads=ads, events=log, report=report)


def known_ads(dataset: Dataset, share: float) -> np.ndarray:
  """The ads that a tokenizer is fitted on, [N] bool: without held-out ads all, else those that
  were taken before test.
  """
  if not share:
    return np.ones(len(dataset.ads), bool)
  held_N, unsold_N = new_ads(dataset, share)
  return ~held_N & ~unsold_N


def check_source(config: Config, source: str) -> None:
  """Raises ConfigError where a run would start from one that knows its held-out ads.

  Args:
    config: of the run.
    source: workdir whose tokenizer it takes; empty: none.
  """
  if not (source and config.data.held_out_ads):
    return
  theirs = load_config(source).data.held_out_ads
  if config.data.held_out_ads != theirs:
    flag = "workdir" if source == config.workdir else "init_from"
    raise ConfigError(
      f"--held_out_ads={config.data.held_out_ads} is not allowed: --{flag}={source} was trained "
      f"with {theirs}, so it may know those ads"
    )


def new_ads(dataset: Dataset, share: float) -> tuple[np.ndarray, np.ndarray]:
  """The ads that nobody took before test, as two masks [N]: the held-out ones, and others, whose
  first sale is in test or is still to come.
  """
  held_N = drawn(len(dataset.ads), share)
  events = dataset.events
  taken_N = np.zeros(len(dataset.ads), bool)
  taken_N[events.ad[visits.split_of_requests(events) != visits.TEST]] = True
  return held_N, ~taken_N & ~held_N
