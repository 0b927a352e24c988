"""UA-SIDs over time: new ads get codes beside those that are published, and a new fit whose codes
keep their meaning.

A trained model knows codes, not ads. *Append* leaves every published code where it is and encodes
the new ads alone. *Refresh* fits the tokenizer anew, then renames its codes: at each level the new
code that has most of an old one's ads takes its name, one to one, by an assignment of most shared
ads. So a model trained on the old codes goes on.
"""

import dataclasses
import logging
import os
from collections.abc import Sequence

import numpy as np
import scipy.optimize

from gr4ad_jax.config import Config, ConfigError, SidConfig
from gr4ad_jax.data import ad_store, visits
from gr4ad_jax.data.schema import AdTable, Dataset
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.sid import last_level
from gr4ad_jax.sid import tokenizer as tokenizer_lib
from gr4ad_jax.sid.tokenizer import Tokenizer
from gr4ad_jax.swing.swing import Told

# What an ad whose earlier levels have parted counts in an assignment: it says little of what a code
# means, and breaks ties.
_PARTED = 0.01


@dataclasses.dataclass(frozen=True)
class Published:
  """UA-SIDs that a run has published: of the ads [N], their codes [N, T], and what made them."""

  ads: AdTable
  codes_NT: np.ndarray
  tokenizer: Tokenizer

  @classmethod
  def load(cls, workdir: str, flag: str) -> "Published":
    """Those of a run, trained or not. Raises ConfigError, naming the flag, where there are none."""
    index = os.path.join(workdir, "index")
    try:
      return cls(
        ad_store.load_ads(index),
        SidIndex.load(index).codes_NT,
        Tokenizer.load(os.path.join(workdir, "tokenizer")),
      )
    except FileNotFoundError as error:
      raise ConfigError(f"--{flag}={workdir} is not allowed: {error}") from error


def asked(sid: SidConfig) -> str:
  """The flag by which published codes are renewed, 'append' or 'refresh'; empty: none."""
  return "append" if sid.append else "refresh" if sid.refresh else ""


def renewed(
  config: Config, dataset: Dataset, told: Told | None = None
) -> tuple[Tokenizer, SidIndex]:
  """The tokenizer and index of a data set, by the published ones of --append or --refresh.

  Raises:
    ConfigError: that run has no UA-SIDs, or ones of other settings.
    DataError: as `tokenizer.fit` and `Tokenizer.encode`.
  """
  flag = asked(config.sid)
  published = Published.load(getattr(config.sid, flag), flag)
  _check_settings(config.sid, published.tokenizer.config, flag)
  if flag == "append":
    codes_NT = append(published, dataset.ads)
    return published.tokenizer, SidIndex.build(codes_NT, published.tokenizer.codebooks)
  # Fitted as if nothing had been published. Names are given afterwards.
  fresh = tokenizer_lib.fit(
    dataset.ads, dataset.events, config.sid, seed=config.training.seed, told=told
  )
  tokenizer, codes_NT = refresh(published, dataset.ads, *fresh)
  return tokenizer, SidIndex.build(codes_NT, tokenizer.codebooks)


def _check_settings(sid: SidConfig, old: SidConfig, flag: str) -> None:
  """Appended ads are coded as the published ones were. A refresh needs codebooks of their sizes."""
  # Settings that say where codes come from, or how they are computed, and do not shape them.
  free = ("append", "refresh", "swing_path", "swing_memory_mb")
  names = [field.name for field in dataclasses.fields(sid) if field.name not in free]
  for name in names if flag == "append" else ("codebooks", "last_level"):
    ours = getattr(sid, name)
    theirs = getattr(old, name)
    if ours != theirs:
      raise ConfigError(
        f"--{name}={ours} is not allowed: the UA-SIDs in --{flag}={getattr(sid, flag)} were made "
        f"with {theirs}"
      )


def fitted(
  dataset: Dataset,
  known_N: np.ndarray,
  sid: SidConfig,
  seed: int,
  log: logging.Logger | None = None,
  told: Told | None = None,
) -> tuple[Tokenizer, np.ndarray]:
  """A tokenizer that is fitted on some of the ads, and the UA-SIDs of all, [N, T].

  Args:
    dataset: ads and events.
    known_N: bool, the ads that it is fitted on, with their events. The others get their codes
      afterwards, by content alone, as ads do that are appended.
    sid, seed, log, told: as `tokenizer.fit` takes them; it also says what is raised.
  """
  if known_N.all():
    return tokenizer_lib.fit(dataset.ads, dataset.events, sid, seed=seed, log=log, told=told)
  events = dataset.events.take(known_N[dataset.events.ad])
  # The row of each known ad among the known ones: how many stand before it.
  row_N = np.cumsum(known_N) - 1
  request = visits.renumbered(events.user, events.request)
  events = dataclasses.replace(events, ad=row_N[events.ad].astype(np.int32), request=request)
  known = dataset.ads.take(known_N)
  tokenizer, codes_NT = tokenizer_lib.fit(known, events, sid, seed=seed, log=log, told=told)
  return tokenizer, append(Published(known, codes_NT, tokenizer), dataset.ads)


def append(published: Published, ads: AdTable) -> np.ndarray:
  """UA-SIDs of a table that has grown, [N, T]: no published code moves.

  Ads are known by their id. Those that are gone keep their codes taken, so that no later ad is
  mistaken for them.
  """
  old_N = _rows(published.ads, ads)
  new = np.flatnonzero(old_N < 0)
  # A new ad gathers row 0, and its codes are replaced below.
  codes_NT = published.codes_NT[np.maximum(old_N, 0)]
  if len(new):
    codes_NT[new] = published.tokenizer.encode(ads.take(new), published.codes_NT)
  return codes_NT


def refresh(
  published: Published, ads: AdTable, fresh: Tokenizer, fresh_NT: np.ndarray
) -> tuple[Tokenizer, np.ndarray]:
  """A new fit with the names of the published codes.

  Args:
    published: the old ones.
    ads: N ads, old and new.
    fresh: fitted anew; codebooks of the same sizes.
    fresh_NT: its UA-SIDs of the ads.

  Returns:
    The tokenizer with its codes renamed, and the UA-SIDs. An ad whose prefix has come out as it was
    keeps its last code too; the others get theirs beside those.
  """
  old_N = _rows(published.ads, ads)
  shared = np.flatnonzero(old_N >= 0)
  # The last level tells ads of a cell apart; it has no meaning that could be kept.
  before_XP = published.codes_NT[old_N[shared], :-1]
  names = matched(before_XP, fresh_NT[shared, :-1], fresh.codebooks[:-1])
  # (V,) gathered by (N,): each new code's old name.
  prefix_NP = np.stack([name_V[fresh_NT[:, t]] for t, name_V in enumerate(names)], axis=1)
  centroids = []
  for table_VD, name_V in zip(fresh.centroids, names, strict=True):
    renamed_VD = np.empty_like(table_VD)
    # Row v of the new codebook moves to the row of its old name, so names and centroids agree.
    renamed_VD[name_V] = table_VD
    centroids.append(renamed_VD)
  tokenizer = dataclasses.replace(fresh, centroids=tuple(centroids))
  # An ad whose earlier codes stayed keeps its last one, too.
  same_X = (prefix_NP[shared] == before_XP).all(axis=1)
  codes_NT = np.empty_like(fresh_NT)
  kept = shared[same_X]
  codes_NT[kept] = published.codes_NT[old_N[kept]]
  rest = np.setdiff1d(np.arange(len(ads)), kept)
  if len(rest):
    vectors_ND = tokenizer.vectors(ads)
    nearby = (
      # One row at a time: a vector's nearest codes are asked for only where its cell is full.
      tokenizer.centroids,
      lambda row: tokenizer.quantized(vectors_ND[rest[row] : rest[row] + 1])[0],
    )
    codes_NT[rest] = last_level.complete(
      ads.take(rest), prefix_NP[rest], fresh.codebooks[-1], fresh.config.last_level,
      codes_NT[kept], nearby,
    )  # fmt: skip
  return tokenizer, codes_NT


def matched(
  before_XP: np.ndarray, after_XP: np.ndarray, sizes: Sequence[int]
) -> tuple[np.ndarray, ...]:
  """The old name of each new code, level by level: one to one, with most shared ads in all.

  Args:
    before_XP: old codes of X ads, all levels but the last.
    after_XP: their new codes.
    sizes: codes a level, V.

  Returns:
    For each level [V], a permutation: new code -> old code. From the second level on, ads whose
    levels before have come out alike decide: a code means something below its prefix.
  """
  names = []
  alike_X = np.ones(len(before_XP), bool)
  for level, size in enumerate(sizes):
    shared_VV = np.zeros((size, size))
    # Row: new code, column: old code.
    # `add.at` sums repeated pairs; plain indexing would keep the last.
    np.add.at(shared_VV, (after_XP[:, level], before_XP[:, level]), np.where(alike_X, 1.0, _PARTED))
    # The Hungarian method: the one-to-one names that keep most ads in all, not each
    # code's own best.
    new_V, old_V = scipy.optimize.linear_sum_assignment(shared_VV, maximize=True)
    name_V = np.empty(size, np.int32)
    name_V[new_V] = old_V
    names.append(name_V)
    # Only ads whose codes agree so far say what the next level's codes mean.
    alike_X &= name_V[after_XP[:, level]] == before_XP[:, level]
  return tuple(names)


def _rows(old: AdTable, ads: AdTable) -> np.ndarray:
  """Row of each ad in an older table, [N]; -1 where that has no ad of its id."""
  return np.array([old.row_of.get(str(ad), -1) for ad in ads.ad_id], np.int64)
