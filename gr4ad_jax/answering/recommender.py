"""Recommendations from Python: `Recommender.load(workdir).recommend(history, k=10)`."""

import copy
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gr4ad_jax.answering import answers, completing
from gr4ad_jax.answering.contexts import Asked, ContextBuilder, UserHistories
from gr4ad_jax.answering.histories import check_now, default_now, events_of
from gr4ad_jax.answering.recommendation import Recommendation, named
from gr4ad_jax.catalogue.choice import AdSets, Choice, rows_left_out
from gr4ad_jax.config import SearchConfig, check_trained, load_config
from gr4ad_jax.data import ad_store
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.data.schema import AdTable, EventLog
from gr4ad_jax.decoding.item_ranker import ItemRanker
from gr4ad_jax.decoding.ranker import Ranker, Ranking
from gr4ad_jax.features import feature_names
from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.features.contexts import FixedAds
from gr4ad_jax.features.neighbors import CoVisitNeighbors
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.models.quantized import quantize
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.ranking import completion, steering
from gr4ad_jax.reasons.reasoner import Reasoner
from gr4ad_jax.requests import candidates, inputs, request_task
from gr4ad_jax.runs import published, run
from gr4ad_jax.zoo import registry

_LARGEST_BATCH = 64
_ANY = Choice()


class Recommender:
  """A trained run, ready to answer. Make one with `load`.

  Attributes:
    config: of the run, with the search that was asked for.
    ads: its ad table.
    behaviors: of its log, shallowest first.
    step: of the checkpoint that answers.
  """

  def __init__(
    self, config, params: Any, ranker: Ranker | ItemRanker, ads: AdTable, codes_NT,
    features: tuple[Trends, CoVisitNeighbors], behaviors, ecpm: EcpmBins, step: int,
  ):  # fmt: skip
    self.config = config
    self.step = step
    self._mesh: Mesh | None = None
    self.ads = ads
    self.behaviors = behaviors
    self._params = params
    self._ranker = ranker
    self._codes_NT = codes_NT
    self._ecpm = ecpm
    self._trends, self._neighbors = features
    fixed = FixedAds(codes_NT, ads.price, ads.created)
    self._builder = ContextBuilder(config.data, *features, fixed, inputs.load_promotions(config))
    self._row = ads.row_of

  @classmethod
  def load(
    cls,
    workdir: str,
    checkpoint: int | str = "best",
    search: SearchConfig | None = None,
    compute_dtype: str | None = None,
  ) -> "Recommender":
    """Opens a trained run.

    Args:
      workdir: the run's directory, or a name that `published.locate` knows; nothing else is read.
      checkpoint: 'best', 'last' or a step.
      search: beams, order of the lists, what becomes of seen ads; None: the run's own.
      compute_dtype: of the matmuls, as in `ModelConfig`; None: the run's own.

    Raises:
      FileNotFoundError: no run, or no such checkpoint, lies there.
      ConfigError: a search, or a dtype, that is not allowed for this run; or the features of the
        run are not those of this code.
    """
    workdir = published.locate(workdir)
    config = registry.asked(load_config(workdir), search, compute_dtype)
    check_trained(workdir)
    folder = {name: os.path.join(workdir, name) for name in ("index", "features")}
    feature_names.check(folder["features"], config.data)
    index = SidIndex.load(folder["index"])
    ads = ad_store.load_ads(folder["index"])
    features = Trends.load(folder["features"]), CoVisitNeighbors.load(folder["features"])
    model = registry.build(config, len(ads))
    ecpm = EcpmBins.load(folder["features"])
    ranker = request_task.make_ranker(model, index, ecpm, config.search)
    with run.open_checkpoints(config) as checkpointer:
      # Resolved once: 'best' may be another checkpoint soon.
      step = checkpointer.resolve(checkpoint)
    params = request_task.load_params(config, model, step)
    behaviors = inputs.load_behaviors(config)
    return cls(config, params, ranker, ads, index.codes_NT, features, behaviors, ecpm, step)

  @classmethod
  def from_pretrained(cls, name: str, **options: Any) -> "Recommender":
    """Opens a published run.

    Args:
      name: of a run that is shipped with the package, such as `online_retail`; a folder of
        `experiments.publish`; or `hf:<owner>/<name>`, on the Hugging Face Hub.
      options: those of `load`.

    Raises:
      ConfigError: there is no such run; or as `load` does.
      ImportError: of `hf:`, where huggingface_hub is missing.
      OSError: the hub cannot be reached.
    """
    shipped = not os.path.isdir(name) and ":" not in name
    return cls.load(f"pretrained:{name}" if shipped else name, **options)

  def recommend(
    self,
    events: Sequence[Mapping | str],
    k: int = 10,
    now: int | None = None,
    choice: Choice = _ANY,
  ) -> list[Recommendation]:
    """The best k ads for one user.

    Args:
      events: the user's history in any order: ad ids, or mappings with `ad_id` and, as known,
        `time` (unix seconds), `behavior`, `value` (money), `quantity`, `request_id`. May be empty.
        Without times, one visit just before `now`.
      k: ads wanted; fewer come back where the last beam width holds fewer.
      now: unix seconds of the request; None: the end of the log that the run was trained on, or of
        this history.
      choice: which ads are wanted; as it comes, all that the run's search allows.

    Raises:
      DataError: an unknown ad, account, category, behaviour or field, a bad number, an event after
        `now`; the message names the value.
      ValueError: k below 1.
    """
    if now is None:
      times = (event.get("time") for event in events if isinstance(event, Mapping))
      now = default_now(times, self._builder.end)
    return self.recommend_log(self.log_of(events, now), k, now, choice)[0]

  def recommend_log(
    self, events: EventLog, k: int = 10, now: int | None = None, choice: Choice = _ANY
  ) -> list[list[Recommendation]]:
    """The best k ads for every user of an event log whose ads are rows of `ads`; see `recommend`.

    With --seen_ads=masked, none that the log has of the user.

    Raises:
      DataError: an event after `now`, or an ad, account or category that there is none of.
      ValueError: k below 1.
    """
    latest = int(events.time.max(initial=0))
    now = default_now([latest], self._builder.end) if now is None else now
    check_now(now, latest)
    users = len(events.user_id)
    ranking = self.rank_log(events, np.full(users, now), k, choice)
    columns = ranking.ad_RK, ranking.logp_RK, ranking.score_RK, ranking.value_RK
    histories = UserHistories(events)
    seen = [set(histories.take([user]).ad.tolist()) for user in range(users)]
    return [named(self.ads, self._codes_NT, *rows) for rows in zip(seen, *columns, strict=True)]

  def rank_log(
    self, events: EventLog, now_U: np.ndarray, k: int = 10, choice: Choice = _ANY,
    batch_size: int = 0,
  ) -> Ranking:  # fmt: skip
    """As `recommend_log`, in numbers, and each user at a moment of their own.

    Args:
      events: the log of U users, of which nothing lies after a user's moment.
      now_U: unix seconds, see `default_moments`.
      k: ads wanted.
      choice: which ads are wanted.
      batch_size: requests searched at once; 0: as many as there are, at most 64.

    Returns:
      [U, k] each; rows are those of `ads`.

    Raises:
      DataError: an ad, account or category that there is none of.
      ValueError: k below 1.
    """
    if k < 1:
      raise ValueError(f"k={k} is not allowed: at least 1")
    users = len(events.user_id)
    size = batch_size or min(_LARGEST_BATCH, 1 << (users - 1).bit_length())
    shards = 1 if self._mesh is None else mesh_lib.batch_shards(self._mesh)
    size = -(-size // shards) * shards  # every device has as many rows
    histories = UserHistories(events)
    asked = Asked(self._builder, histories, now_U, self._mesh)
    rows = [
      rows_left_out(
        choice, histories.take([user]), int(now_U[user]), self.config.search, self._row.get
      )
      for user in range(users)
    ]
    left_out = LeftOut.lists(rows, [self._sets.allowed(choice)] * users)
    ask = functools.partial(self._ranker.rank, self._params, asked, np.arange(users))
    rank = lambda most, without: ask(most, size, left_out=without)  # noqa: E731
    return steering.search(rank, self._steering, self.config, k, users, left_out)

  def default_moments(self, events: EventLog) -> np.ndarray:
    """[U] int64, the moment at which each user of a log asks where none is named, unix seconds."""
    latest_U = np.zeros(len(events.user_id), np.int64)
    np.maximum.at(latest_U, events.user, events.time)
    return np.array([default_now([int(time)], self._builder.end) for time in latest_U], np.int64)

  def batch(self, events: EventLog, now_U: np.ndarray) -> RequestBatch:
    """The contexts of a log's users, each at a moment (unix seconds), as the model reads them."""
    return self._builder.batch(events, now_U)

  def over(self, mesh: Mesh) -> "Recommender":
    """The same recommender, whose batches are cut over the devices of a mesh of this process."""
    spread = copy.copy(self)
    spread._params = jax.device_put(self._params, NamedSharding(mesh, PartitionSpec()))
    spread._mesh = mesh
    return spread

  def digest(self) -> str:
    """SHA-256 of parameters and ads: where it, settings and features are equal, so are answers."""
    return candidates.digest(self._params, self._codes_NT, list(map(str, self.ads.ad_id)))

  def complete(
    self,
    events: EventLog,
    basket: Sequence[str],
    k: int = 10,
    now: int | None = None,
    choice: Choice = _ANY,
    one_by_one: bool = False,
  ) -> list[Recommendation]:
    """The best k ads beside those of a visit that has begun; see `ranking/completion`.

    Args:
      events: the user's history before the visit, a log of one user; it may be empty.
      basket: ids of the ads that were taken in the visit so far. They stand in no list.
      k: ads wanted.
      now: unix seconds of the visit; None: as of `recommend`.
      choice: which ads are wanted.
      one_by_one: whether each ad joins the basket before the next one is looked for: k searches,
        and a set whose ads know of each other.

    Raises:
      DataError, ValueError: as `recommend_log` does; an unknown ad of the basket is named.
    """
    return completing.complete(self, events, basket, k, now, choice, one_by_one)

  def completed(
    self, events: EventLog, basket: Sequence[str], k: int, now: int, choice: Choice
  ) -> list[Recommendation]:
    """As `complete`, the whole list at once; `now` and the basket's ids are known to be right."""
    # A row for the one user: (1, ads of the basket). An ad that stands twice counts once.
    rows = np.array([[self._row[ad] for ad in dict.fromkeys(basket)]], np.int64)
    histories = UserHistories(events)
    asked = Asked(self._builder, histories, np.array([now]))
    wanted = dataclasses.replace(choice, not_ads=(*choice.not_ads, *basket))
    out = rows_left_out(wanted, events, now, self.config.search, self._row.get)
    left_out = LeftOut.lists([out], [self._sets.allowed(wanted)])
    ranking = completion.completed(
      self._ranker, self._params, asked, np.zeros(1, np.int64), self._neighbors, rows, k,
      self.config.search.basket_weight, left_out, self.config.search.rerank_candidates, 1,
    )  # fmt: skip
    columns = (ranking.ad_RK, ranking.logp_RK, ranking.score_RK, ranking.value_RK)
    return named(
      self.ads, self._codes_NT, set(events.ad.tolist()), *(column[0] for column in columns)
    )

  def beam_tree(self, events: EventLog, now: int) -> tuple[tuple[Mapping[str, Any], ...], ...]:
    """The prefixes among the final beams of one user's search, level by level; see
    `answers.beam_tree`.

    Args:
      events: the user's history, a log of one user.
      now: unix seconds of the request.

    Raises:
      DataError: an event after `now`.
      ValueError: a model of single ads, which generates no UA-SID and so has no beams.
    """
    if not isinstance(self._ranker, Ranker):
      raise ValueError(f"--model={self.config.model.model} scores single ads: it has no beams")
    check_now(now, int(events.time.max(initial=0)))
    batch = self._builder.batch(events, np.array([now]))
    beams = jax.device_get(self._ranker.search(self._params, batch, self.config.search.beams[-1]))
    return answers.beam_tree(beams, 0)

  def explained(
    self, events: EventLog, now: int | None, found: Sequence[Recommendation]
  ) -> list[Recommendation]:
    """The ads of one user's list with their reasons, in the same order.

    Args:
      events: the user's history, a log of one user.
      now: unix seconds of the request, as `recommend_log` was given it.
      found: ads that `recommend_log` found for them.

    Raises:
      ConfigError: a model that gives no reasons: it generates no UA-SID from slots of its own.
    """
    now = default_now([int(events.time.max(initial=0))], self._builder.end) if now is None else now
    batch = self._builder.batch(events, np.array([now]))
    rows = [self._row[ad.ad_id] for ad in found]
    codes = self._codes_NT[rows]
    params = quantize(self._params, self.config.search.quantize)
    reasons = self._reasoner.reasons(params, batch, events, now, rows, codes)
    told = zip(found, reasons, strict=True)
    return [dataclasses.replace(ad, reasons=reason) for ad, reason in told]

  @functools.cached_property
  def _reasoner(self) -> Reasoner:
    model = registry.build(self.config, len(self.ads))
    name = self.config.model.model
    return Reasoner.of_ads(name, model, self._ecpm, self._neighbors, self.behaviors, self.ads)

  def has(self, ad_id: str) -> bool:
    """Whether the ad table has an ad of this id."""
    return ad_id in self._row

  @property
  def end(self) -> int:
    """Unix seconds where the log that the run was trained on ends."""
    return self._builder.end

  @functools.cached_property
  def _sets(self) -> AdSets:
    return AdSets(self.ads.account_id, self.ads.category)

  @functools.cached_property
  def _steering(self) -> steering.Steering:
    return steering.of_run(self.config, self.ads, self._trends)

  def log_of(self, events: Sequence[Mapping | str], now: int) -> EventLog:
    """One user's events as a log. Raises DataError as `recommend` does."""
    return events_of(
      events, self._row.get, self.behaviors, now, self.config.data.session_gap_minutes * 60
    )
