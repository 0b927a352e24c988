"""Several engines behind one interface: each user is answered by the engine of the user's arm.

All follow one stream, of events and of changes of ads. What one of them shows, the others count.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gr4ad_jax.answering.living import live_folder, stream_url
from gr4ad_jax.answering.messages import Answer, Query
from gr4ad_jax.arms import arms_file
from gr4ad_jax.arms.arms_file import Arms
from gr4ad_jax.config import Config, ConfigError, with_knobs
from gr4ad_jax.engine.engine import ServingEngine
from gr4ad_jax.engine.metrics import joined_text
from gr4ad_jax.requests import inputs


def check_codes(name: str, own: Config, served: Config) -> None:
  """Raises ConfigError where an arm's run has other UA-SIDs than the one that is served."""
  if own.workdir == served.workdir:
    return
  # Files of tokenizer and index, by content: two runs of one start have equal ones.
  digests = [inputs.digest_of_files(config) for config in (own, served)]
  if digests[0] != digests[1]:
    raise ConfigError(
      f"--arms={served.serving.arms} is not allowed: arm {name}: the run in {own.workdir} has "
      "other UA-SIDs; train it with --init_from"
    )


class ArmsEngine:
  """Answers as `ServingEngine` does, by arms. The first arm's engine is asked for what is no
  recommendation.

  Args:
    config: of the run that is served.
    arms: who they are. Each keeps its changes in a folder `arms/<name>` of the server's own.
    told: hears of the compilation of each: programs ready, in all, seconds.
    early: as `ServingEngine` takes it.

  Raises:
    ConfigError: an arm's run has other UA-SIDs, so that a new ad's codes would not be its; or as
      `ServingEngine`.
  """

  def __init__(
    self, config: Config, arms: Arms, told: Callable[[int, int, float], None] = lambda *_: None,
    early: bool = False,
  ):  # fmt: skip
    self.config = config
    self.arms = arms
    live = live_folder(config)
    stream = stream_url(config, live)
    configs = {name: arms_file.config_of(arm, config) for name, arm in arms.arms.items()}
    for name, own in configs.items():
      check_codes(name, own, config)
    self.engines: dict[str, ServingEngine] = {}
    # An arm that cannot be opened closes those before it.
    with contextlib.ExitStack() as opened:
      for name, own in configs.items():
        # A folder for each arm, since one process at a time may hold a folder. The
        # stream is one for all.
        place = {"state_dir": os.path.join(live, "arms", name), "stream": stream}
        own = with_knobs(own, place)
        checkpoint = arms.arms[name].checkpoint
        engine = ServingEngine(own.workdir, own, checkpoint, told, early, arm=name)
        opened.callback(engine.close)
        self.engines[name] = engine
      opened.pop_all()  # all are open: they stay so
    # Dicts keep the order of the file, so this is the first arm of the file.
    self.first = self.engines[next(iter(arms.arms))]

  def of(self, user: str | None) -> ServingEngine:
    """The engine of a user."""
    return self.engines[self.arms.of(user)]

  def recommend(self, query: Query) -> Answer:
    """See `ServingEngine.recommend`."""
    return self.of(query.user).recommend(query)

  async def recommend_async(self, query: Query) -> Answer:
    """See `ServingEngine.recommend_async`."""
    return await self.of(query.user).recommend_async(query)

  def put_ad(self, ad_id: str, fields: Mapping[str, Any]) -> str:
    """See `Changes.put_ad`. The other arms hear of it by the stream."""
    return self.first.put_ad(ad_id, fields)

  def delete_ad(self, ad_id: str) -> bool:
    """See `Changes.delete_ad`; likewise."""
    return self.first.delete_ad(ad_id)

  def get_ad(self, ad_id: str) -> dict[str, Any] | None:
    """See `Changes.get_ad`; codes are the first arm's."""
    return self.first.get_ad(ad_id)

  def put_account(self, account: str, daily_budget: float | None) -> dict[str, Any]:
    """See `Changes.put_account`."""
    # A list, so that every arm hears of it; the answers are alike.
    return [engine.put_account(account, daily_budget) for engine in self.engines.values()][0]

  def account(self, account: str) -> dict[str, Any]:
    """See `Changes.account`."""
    return self.first.account(account)

  def post_events(self, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """See `Changes.post_events`: all arms follow the one stream."""
    return self.first.post_events(events)

  def delete_user(self, user: str) -> dict[str, Any]:
    """See `Changes.delete_user`: the others hear of it by the stream."""
    return self.first.delete_user(user)

  def users(self, prefix: str, limit: int) -> list[str]:
    """See `Changes.users`."""
    return self.first.users(prefix, limit)

  def user(self, user: str, limit: int) -> dict[str, Any]:
    """See `Changes.user`."""
    return self.of(user).user(user, limit)

  def history(self, user: str, limit: int) -> list[dict[str, Any]]:
    """See `Changes.history`."""
    return self.of(user).history(user, limit)

  @property
  def ready(self) -> bool:
    """Whether every arm answers."""
    return all(engine.ready for engine in self.engines.values())

  @property
  def compiling(self) -> bool:
    """Whether an arm compiles searches behind those in use."""
    return any(engine.compiling for engine in self.engines.values())

  @property
  def step(self) -> int:
    """Step of the first arm's checkpoint."""
    return self.first.step

  @property
  def metrics(self) -> "ArmsEngine":
    """Itself: `text` and `content_type`, as `Metrics`."""
    return self

  @property
  def content_type(self) -> str:
    """Of `text`."""
    return self.first.metrics.content_type

  def text(self) -> bytes:
    """All arms' metrics, each with the label `arm`."""
    return joined_text({name: engine.metrics for name, engine in self.engines.items()})

  def reload(self) -> bool:
    """Looks for other checkpoints now. Returns whether one came into use."""
    # A list, too: `any` of a generator would stop at the first arm that has something new.
    return any([engine.reload() for engine in self.engines.values()])

  def stats(self) -> dict[str, Any]:
    """The first arm's state, and of each what differs."""
    all_of_it = {name: engine.stats() for name, engine in self.engines.items()}
    of_each = {
      name: {"share": self.arms.shares[name], "checkpoint": found["checkpoint"]}
      for name, found in all_of_it.items()
    }
    return all_of_it[next(iter(self.arms.arms))] | {"arms": of_each}

  def close(self, wait: bool = True) -> None:
    """Ends all."""
    for engine in self.engines.values():
      engine.close(wait)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()
