"""A stream as a source: which visits make a group, what their contexts see, and restoring."""

import jax
import numpy as np
import pytest

from gr4ad_jax.config import ConfigError, load_config, with_knobs
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.features.batches import NEIGHBOR
from gr4ad_jax.learning.learn_task import LearnTask
from tests.learning import streams


def assert_same(one, other):
  for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def task(small_run, tmp_path_factory):
  """A task whose stream has 60 visits; the first of them are gathered."""
  stream = streams.filled(tmp_path_factory.mktemp("stream") / "s.sqlite", streams.visits())
  made = streams.task_of(small_run, stream)
  assert made.source.gather(0, 6)
  return made


def test_groups_are_visits_in_the_order_in_which_they_end(task):
  names = [visit.visit_id for group in task.source.groups(0, 6) for visit in group.visits]
  assert names == [f"live-{number}" for number in range(48)]
  assert not task.source.gather(6, 2)  # 59 of 60 are over, and 64 are wanted
  assert task.source.feed.lag == 0


def test_the_context_of_a_visit_is_that_of_the_state_at_its_moment(small_run, tmp_path):
  """What `State.features` gives when the visit opens, with nothing of the visit itself."""
  events = streams.visits(number=12, seed=3)
  whole = streams.task_of(small_run, streams.filled(tmp_path / "whole.sqlite", events))
  assert whole.source.gather(0, 1)
  (group,) = whole.source.groups(0, 1)
  batch = group.examples.batch()
  for place, visit in enumerate(group.visits):
    before = [event for event in events if event["time"] < visit.begin]
    stream = streams.filled(tmp_path / f"{place}.sqlite", before)
    feed = streams.task_of(small_run, stream).source.feed
    while feed.take():
      pass
    feed.visits.flush()
    asked = feed.visits.state.features([visit.user_id], np.array([visit.begin]))
    for name in ("slot_kind_BS", "slot_ad_BS", "slot_features_BSF", "user_features_BF"):
      np.testing.assert_array_equal(getattr(batch, name)[place], getattr(asked, name)[0], name)
    taken = {event["ad_id"]: event["value"] for event in events
             if event["request_id"] == visit.visit_id}  # fmt: skip
    targets = batch.target_mask_BM[place]
    rows = [whole.ads.row(ad) for ad in taken]
    assert sorted(batch.target_ad_BM[place][targets]) == sorted(rows)
    assert batch.target_value_BM[place].sum() == pytest.approx(sum(taken.values()))


def test_a_restored_source_gives_the_same_batches(task, small_run):
  """Restored at each step: in the middle of a group, of a round, and where groups were refused."""
  source = task.source
  source.forget(1, 1)
  first = task.first_step
  wanted = [source.batch(first + step) for step in range(12)]
  drawn = np.concatenate([batch.target_ad_BM.ravel() for batch in wanted[1::2]])
  assert len(set(drawn.tolist())) > 5
  for step in (3, 4, 8):
    other = streams.task_of(small_run, task._stream).source
    state = source.state(first + step)
    other.restore(state)
    assert other.state(first + step) == state
    assert other.gather(0, 6)
    for ahead in range(step, 12):
      assert_same(other.batch(first + ahead), wanted[ahead])
  source.forget(0, 3)  # what is refused is not learned from as something old
  assert not any(
    np.array_equal(x, y)
    for x, y in zip(source.batch(first + 7), wanted[7], strict=True)
    if x.size and x.dtype == np.float32
  )


def test_a_restored_source_knows_as_many_ads_by_day(small_run, tmp_path):
  """New ads come and sell all the time: what is popular does not depend on when one was killed."""
  stream = streams.filled(tmp_path / "s", [])
  for number, visit in enumerate(np.reshape(streams.visits(), (60, 3)).tolist()):
    if number % 3 == 1:
      new = {"ad_id": f"new{number}", "text": "red tea cup", "account_id": "shop1"}
      stream.append("ads", [new])
      visit.append(visit[0] | {"ad_id": new["ad_id"], "event_id": f"of {number}"})
    stream.append("events", visit)
  whole = streams.task_of(small_run, stream).source
  assert whole.gather(0, 1)
  for number in range(1, 6):
    first = whole._first_step + 2 * number
    other = streams.task_of(small_run, stream).source
    other.restore(whole.state(first))
    assert whole.gather(number, 1) and other.gather(number, 1)
    for step in range(2):
      assert_same(other.batch(first + step), whole.batch(first + step))


def test_another_stream_is_refused(task, small_run, tmp_path):
  state = task.source.state(task.first_step + 8)
  assert state["groups"] == 4 and state["offset"] > 0
  short = streams.task_of(small_run, streams.filled(tmp_path / "a", streams.visits(20)))
  with pytest.raises(DataError, match="it ends at event 60, not at"):
    short.source.restore(state)
  other = streams.task_of(small_run, streams.filled(tmp_path / "b", streams.visits()[3:]))
  with pytest.raises(DataError, match="its events are others"):
    other.source.restore(state)


def test_a_stream_from_which_a_user_was_erased_is_gone_on_with(small_run, tmp_path, caplog):
  """The visits that are left make fewer groups; steps and numbers go on as they were."""
  stream = streams.filled(tmp_path / "s", streams.visits())
  before = streams.task_of(small_run, stream)
  assert before.source.gather(0, 4)
  state = before.source.state(before.first_step + 8)
  gone = stream.erase("events", "user_id", "u3")
  assert gone > 3
  after = streams.task_of(small_run, stream).source
  after.restore(state)
  assert (
    f"{state['taken'] - after.feed.taken} events that were learned from are gone" in caplog.text
  )
  assert after.gather(4, 1)
  (group,) = after.groups(4, 1)
  names = [visit.visit_id for visit in group.visits]
  assert group.number == 4 and "u3" not in {visit.user_id for visit in group.visits}
  assert len(names) == len(set(names)) == 8


def test_a_day_is_a_group(small_run, tmp_path):
  """Each day's visits, some of them twice where a batch has room; the last day is not over."""
  stream = streams.filled(tmp_path / "s", streams.visits(number=60))
  knobs = {"learn_from": "day", "day_steps": 2, "replay_steps": 1}
  task = streams.task_of(small_run, stream, **knobs)
  assert task.source.steps_per_group == 4
  assert task.source.gather(0, 2)
  one, two = task.source.groups(0, 2)
  assert {visit.last // 86_400 for visit in one.visits} == {streams.START // 86_400}
  assert {visit.last // 86_400 for visit in two.visits} == {streams.START // 86_400 + 1}
  assert 8 < len(two.visits) == 24
  first = [task.source.batch(task.first_step + 4 + step) for step in (0, 2)]
  asked = np.concatenate([batch.slot_ad_BS for batch in first])
  assert len(np.unique(asked, axis=0)) > 8  # not the same eight twice


def brought(batch, row):
  """What a visit brought, which tells it from all others: its ads and their values."""
  real = batch.target_mask_BM[row]
  ads = batch.target_ad_BM[row][real].tolist()
  return tuple(sorted(zip(ads, batch.target_value_BM[row][real].tolist(), strict=True)))


def test_a_refit_draws_from_all_visits_up_to_the_end_of_its_round(task, small_run):
  knobs = {"refit_steps": 80, "round_groups": 2}
  made = streams.task_of(small_run, task._stream, **knobs)
  source = made.source
  assert source.steps_per_group == 40 and source.gather(0, 6)
  group_of = {}
  for group in source.groups(0, 6):
    batch = group.examples.batch()
    group_of |= {brought(batch, row): group.number for row in range(8)}
  assert len(group_of) == 48
  for turn in range(2):
    steps = made.first_step + 80 * turn + np.arange(80)
    batches = [source.batch(int(step)) for step in steps]
    rows = [group_of.get(brought(batch, row), -1) for batch in batches for row in range(8)]
    # -1: of the run's own. From the first step on, the round's last group is learned from too.
    assert set(rows) == {-1, *range(2 * turn + 2)}
    assert set(rows[:320]) == set(rows[320:])
    own = len(source._old_requests)
    # All alike: the share of the stream's is what they are among all.
    share = 16 * (turn + 1) / (own + 16 * (turn + 1))
    assert np.mean(np.array(rows) >= 0) == pytest.approx(share, abs=0.08)


@pytest.mark.parametrize(
  ("knobs", "words"),
  [
    ({"refit_steps": 9, "round_groups": 2}, "--refit_steps=9 is not allowed: a multiple of --rou"),
    ({"refit_steps": 8, "list_weight": 0.5}, "--list_weight=0.5 is not allowed: --refit_steps lea"),
  ],
)
def test_what_a_refit_cannot_do_is_refused(small_run, knobs, words):
  config = with_knobs(load_config(str(small_run)), knobs)
  with pytest.raises(ConfigError, match=words):
    LearnTask.check(config)


def near(batch):
  """Ads of the slots of neighbours."""
  return np.where(batch.slot_kind_BS == NEIGHBOR, batch.slot_ad_BS, -1)


def test_neighbors_follow_the_visits(task, small_run):
  """After every 16 visits; of old visits they stay those of their time, whoever is restored."""
  knobs = {"neighbor_visits": 16, "replay_steps": 2}
  made = streams.task_of(small_run, task._stream, **knobs)
  source = made.source
  assert source.gather(0, 6) and source.told["neighbors/visits"] == 48
  pairs = zip(source.groups(0, 6), task.source.groups(0, 6), strict=True)
  fresh = [(near(one.examples.batch()), near(other.examples.batch())) for one, other in pairs]
  assert all((one == other).all() for one, other in fresh[:2])
  assert any((one != other).any() for one, other in fresh[2:])
  wanted = {}  # by what a visit brought: the values make it the only one
  for group in source.groups(0, 6):
    for row, visit in zip(near(group.examples.batch()), group.visits, strict=True):
      brought = tuple(sorted((event.ad, np.float32(event.value)) for event in visit.events))
      wanted[brought] = row.tolist()
  assert len(wanted) == 48
  first = made.first_step
  old = [source.batch(first + step) for step in range(18) if step % 3]
  seen = 0
  for batch in old:
    for row, real in enumerate(batch.target_mask_BM):
      pairs = zip(batch.target_ad_BM[row][real], batch.target_value_BM[row][real], strict=True)
      brought = tuple(sorted((int(ad), value) for ad, value in pairs))
      if brought in wanted:
        seen += 1
        assert near(batch)[row].tolist() == wanted[brought]
  assert seen > 5
  other = streams.task_of(small_run, task._stream, **knobs).source
  other.restore(source.state(first + 10))
  assert other.gather(0, 6)
  for ahead in range(10, 18):
    assert_same(other.batch(first + ahead), source.batch(first + ahead))
