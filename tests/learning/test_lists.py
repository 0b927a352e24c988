"""Lists with rewards beside the visits: which are learned from when, what the loss is, kills."""

import math
import random
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from gr4ad_jax.config import ConfigError, load_config, with_knobs
from gr4ad_jax.learning.learn_task import LearnTask
from gr4ad_jax.learning.learner import Learner
from gr4ad_jax.preference.preference_task import Listed
from gr4ad_jax.requests import request_task
from gr4ad_jax.requests.candidates import NO_REFERENCE
from gr4ad_jax.streams.opening import open_stream
from tests.learning import streams
from tests.objectives import loops

LISTS = {"list_weight": 0.5, "list_rows": 4}
SIZE = 6


def records(inputs, events, seed=5):
  """A list of each visit: what it took, and other ads."""
  rng = random.Random(seed)
  ids = [str(ad_id) for ad_id in inputs.dataset.ads.ad_id]
  visits = {}
  for event in events:
    visits.setdefault(event["request_id"], []).append(event)
  found = []
  for name, own in visits.items():
    taken = [event["ad_id"] for event in own]
    ads = taken + rng.sample([ad for ad in ids if ad not in taken], SIZE - len(taken))
    entries = [
      {"ad": ad, "codes": inputs.index.codes_NT[ids.index(ad)].tolist(), "taken": ad in taken,
       "reward": round(3 * rng.random(), 3), "log_p": rng.choice([None, -4 * rng.random()])}
      for ad in ads
    ]  # fmt: skip
    entries.sort(key=lambda entry: -entry["reward"])
    began = min(event["time"] for event in own)
    found.append({"request": name, "user": own[0]["user_id"], "began": began, "list": entries})
  return found


def filled(path, inputs, visits=60, lists=20):
  """Half of the visits, lists of the first ones, the other half: each a second after the other."""
  clock = iter(range(1, 1000))
  stream = open_stream(f"sqlite:{path}", lambda: next(clock))
  events = streams.visits(visits)
  half = len(events) // 2
  made = records(inputs, events)[:lists]
  stream.append("events", events[:half])
  if made:
    stream.append("lists", made, [record["request"] for record in made])
  stream.append("events", events[half:])
  return stream


@pytest.fixture(scope="module")
def task(small_run, tmp_path_factory):
  """A task whose stream has 60 visits and lists of the first 20; six groups are gathered."""
  bare = streams.task_of(small_run, streams.filled(tmp_path_factory.mktemp("bare") / "s", []))
  stream = filled(tmp_path_factory.mktemp("stream") / "s", bare.inputs)
  made = streams.task_of(small_run, stream, **LISTS)
  assert made.source.gather(0, 6)
  return made


def test_lists_are_learned_from_once_they_had_come(task):
  """Visits 24 to 31 are the first group that was whole after the lists."""
  source = task.source
  due = [[one.visit.visit_id for one in group.lists] for group in source.groups(0, 6)]
  names = [f"live-{number}" for number in range(12)]
  assert due == [[], [], [], names[:4], names[4:8], names[8:12]]
  kinds = [type(source.batch(task.first_step + step)) is Listed for step in range(12)]
  assert kinds == [False] * 6 + [True, False] * 3  # never with old visits
  assert source.told["lists/learned"] == 12 and source.told["lists/waiting"] == 8


def test_a_list_is_of_its_visit(task):
  """Its context is the visit's, its candidates are the record's, what was taken stands first."""
  (group,) = task.source.groups(3, 1)
  step = task.first_step + 3 * task.source.steps_per_group
  batch = task.source.batch(step).lists
  events = streams.visits(60)
  wanted = {record["request"]: record for record in records(task.inputs, events)}
  (first,) = task.source.groups(0, 1)
  contexts = first.examples.batch()
  for row, due in enumerate(group.lists):
    name = due.visit.visit_id
    place = [visit.visit_id for visit in first.visits].index(name)
    for column in ("slot_kind_BS", "slot_ad_BS", "user_features_BF", "user_value_B"):
      np.testing.assert_array_equal(
        getattr(batch.requests, column)[row], getattr(contexts, column)[place], column
      )
    record = wanted[name]["list"]
    order = sorted(record, key=lambda entry: (not entry["taken"], -entry["reward"]))
    values = {event["ad_id"]: event["value"] for event in events if event["request_id"] == name}
    assert batch.mask_BC[row].sum() == SIZE and batch.mask_BC[row, :SIZE].all()
    for place, entry in enumerate(order):
      assert batch.requests.target_codes_BMT[row, place].tolist() == entry["codes"]
      assert batch.reward_BC[row, place] == np.float32(entry["reward"])
      reference = NO_REFERENCE if entry["log_p"] is None else entry["log_p"]
      assert batch.reference_logp_BC[row, place] == np.float32(reference)
      assert batch.requests.target_mask_BM[row, place] == (entry["ad"] in values)
      money = values.get(entry["ad"], 0.0)
      assert batch.requests.target_value_BM[row, place] == pytest.approx(money)


def test_a_restored_source_gives_the_same_lists(task, small_run):
  """Restored between groups, in the middle of one and of a round."""
  source = task.source
  first = task.first_step
  wanted = [source.batch(first + step) for step in range(12)]
  for step in (3, 6, 8, 9, 10):
    other = streams.task_of(small_run, task._stream, **LISTS).source
    state = source.state(first + step)
    assert ("lists" in state) == (step >= 2)
    other.restore(state)
    assert other.state(first + step) == state
    # Lists that came before the first half's end and wait are the same ones.
    assert other.gather(0, 6)
    for ahead in range(step, 12):
      assert isinstance(other.batch(first + ahead), type(wanted[ahead]))
      for one, two in zip(
        jax.tree.leaves(other.batch(first + ahead)), jax.tree.leaves(wanted[ahead]), strict=True
      ):
        np.testing.assert_array_equal(one, two)
  assert other.told == source.told


def test_visits_that_were_refused_teach_nothing_by_their_lists(small_run, task):
  """Lists of group 0 are masked once it is forgotten, and those of group 1 stay."""
  other = streams.task_of(small_run, task._stream, **LISTS).source
  assert other.gather(0, 6)
  step = task.first_step + 5 * other.steps_per_group  # lists of the visits 8 to 11
  before = other.batch(step)
  other.forget(0, 1)
  np.testing.assert_array_equal(other.batch(step).lists.mask_BC, before.lists.mask_BC)
  assert not isinstance(other.batch(step - other.steps_per_group), Listed)  # of the visits 4 to 7
  groups = other.groups(5, 1)[0].lists
  other.groups(5, 1)[0].lists = (groups[0]._replace(group=0), *groups[1:])
  masked = other.batch(step).lists
  assert not masked.mask_BC[0].any() and not masked.requests.target_mask_BM[0].any()
  np.testing.assert_array_equal(masked.mask_BC[1:], before.lists.mask_BC[1:])


def test_without_lists_nothing_is_read(small_run, task):
  """The knob is 0: batches are plain. With it and no list in the stream they are the same."""
  plain = streams.task_of(small_run, task._stream).source
  assert plain.gather(0, 6) and plain.told == {"neighbors/visits": 0.0}
  assert "lists" not in plain.state(task.first_step + 6)
  for step in (6, 7):
    one = plain.batch(task.first_step + step)
    other = task.source.batch(task.first_step + step)
    other = other.requests if isinstance(other, Listed) else other
    for x, y in zip(one, other, strict=True):
      np.testing.assert_array_equal(x, y)


def _of_requests(out, batch, edges, objective, factor_BM):
  """VSL by loops, the mean over all that was taken."""
  mask = np.asarray(batch.target_mask_BM)
  value = np.asarray(batch.target_value_BM, np.float64)
  places = np.argwhere(mask)
  weight = {
    (b, m): (0.1 + math.log(1 + value[b, m]))
    * (1 + objective.depth_weight * batch.target_depth_BM[b, m])
    * (1 + float(batch.user_value_B[b])) ** objective.user_weight
    for b, m in places.tolist()
  }
  mean = sum(weight.values()) / len(weight)
  total = 0.0
  for (b, m), own in weight.items():
    scores = np.asarray(out.ecpm_logits_BMV[b, m], np.float64)
    own_bin = sum(value[b, m] > edge for edge in edges)
    ecpm = math.log(np.exp(scores).sum()) - scores[own_bin]
    mtp = -float(np.sum(out.mtp_logp_BMT[b, m]))
    named = -float(out.logp_BM[b, m]) + objective.lambda_ecpm * ecpm
    total += factor_BM[b][m] * (own / mean * named + objective.lambda_mtp * mtp)
  return total / len(weight)


@pytest.mark.long
def test_the_loss_is_that_of_the_visits_and_the_weighted_unified_one_of_the_lists(task):
  """Against loops: w_VSL times VSL of what was taken, and w_RL times RSPO's term of each."""
  params = request_task.load_params(task.config, task.model)
  batch = task.source.batch(task.first_step + 6)
  key = jax.random.key(0)
  total, metrics = jax.jit(task.loss)(params, batch, key)
  lists = batch.lists
  out = jax.jit(task.model.apply, static_argnames="valued")(
    {"params": params}, lists.requests, lists.requests.target_codes_BMT, valued=SIZE
  )
  objective = task.config.objective
  assert objective.value_weight == "log"
  imitate = np.zeros(lists.mask_BC.shape)
  terms = []
  for b in range(len(imitate)):
    row = [
      np.asarray(x[b], np.float64)[:SIZE]
      for x in (out.logp_BM, lists.reference_logp_BC, lists.reward_BC)
    ]
    imitate[b, :SIZE], explore = loops.unified(row[0], row[2], 1.0, 1.0)
    found = loops.rspo_terms(*row, 1.0, 1.0, row_norm=True)
    terms += [explore[i] * term for i, term in found.items()]
  vsl = _of_requests(out, lists.requests, task.inputs.ecpm.edges, objective, imitate)
  rl = sum(terms) / len(terms)
  assert metrics["lists_vsl"] == pytest.approx(vsl, rel=1e-4)
  assert metrics["lists_preference"] == pytest.approx(rl, rel=1e-4) and rl > 0.01
  assert total == pytest.approx(float(metrics["vsl"]) + 0.5 * (vsl + rl), rel=1e-5)
  assert metrics["loss"] == total


def test_what_cannot_learn_lists_is_refused(small_run):
  config = with_knobs(load_config(str(small_run)), {"list_weight": 1.0})
  LearnTask.check(config)
  with pytest.raises(ConfigError, match="--list_weight=1 is not allowed: --model=tiger learns no"):
    LearnTask.check(with_knobs(config, {"model": "tiger"}))
  with pytest.raises(ConfigError, match="with --history_bias log-probabilities cannot be compared"):
    LearnTask.check(with_knobs(config, {"history_bias": True}))
  with pytest.raises(
    ConfigError, match="--list_rows=5 is not allowed: a multiple of 2, as --batch"
  ):
    LearnTask.check(with_knobs(config, {"list_rows": 5, "accumulate": 2}))


def assert_same(one, other):
  for x, y in zip(streams.leaves(one), streams.leaves(other), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.long
def test_without_lists_in_the_stream_no_bit_differs(small_run, tmp_path, task):
  stream = filled(tmp_path / "s", task.inputs, lists=0)
  ended = [
    Learner(streams.task_of(streams.copied(small_run, tmp_path / name), stream, **knobs))
    .run(follow=False).state
    for name, knobs in (("off", {}), ("on", LISTS))
  ]  # fmt: skip
  assert_same(*ended)


@pytest.mark.long
def test_kill_9_in_the_middle_changes_no_bit(small_run, tmp_path, task):
  """The binary, killed at moments that it does not choose, over topics that grow meanwhile, with
  neighbours that follow; and what is learned differs from learning without lists.
  """
  knobs = LISTS | {"neighbor_visits": 24}
  events = streams.visits(number=90)
  lists = records(task.inputs, events)
  parts = [(events[60:150], lists[10:30]), (events[150:], lists[30:]), ([], [])]
  ticks = {name: iter(range(1, 1000)) for name in ("whole", "growing")}
  whole, growing = (
    open_stream(f"sqlite:{tmp_path}/{name}.sqlite", lambda name=name: next(ticks[name]))
    for name in ticks
  )
  for stream in (whole, growing):
    stream.append("events", events[:60])
    stream.append("lists", lists[:10])
  for some, of_them in parts:
    whole.append("lists", of_them)
    whole.append("events", some)
  workdirs = {name: streams.copied(small_run, tmp_path / name) for name in ("a", "b", "off")}
  ended = Learner(streams.task_of(workdirs["a"], whole, **knobs)).run(follow=False).state
  off = streams.task_of(workdirs["off"], whole, neighbor_visits=24)
  without = Learner(off).run(follow=False).state
  assert any(
    (x != y).any() for x, y in zip(streams.leaves(ended), streams.leaves(without), strict=True)
  )
  command = [
    sys.executable, "-m", "experiments.learn", f"--workdir={workdirs['b']}", "--round_groups=2",
    f"--stream=sqlite:{tmp_path}/growing.sqlite",
    *(f"--{name}={value}" for name, value in knobs.items()),
  ]  # fmt: skip
  checkpoints = workdirs["b"] / "live" / "learner" / "checkpoints"
  for some, of_them in parts:
    seen = set(checkpoints.glob("*"))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    growing.append("lists", of_them)
    growing.append("events", some)
    while process.poll() is None and set(checkpoints.glob("[0-9]*")) <= seen:
      time.sleep(0.01)  # until it has saved once more
    process.kill()
    process.wait()
  task = streams.task_of(workdirs["b"], growing, **knobs)
  found = Learner(task).run(follow=False)
  assert task.source.told["lists/learned"] >= 20
  assert task.source.told["neighbors/visits"] >= 72
  assert int(found.state.step) == int(ended.step)
  assert_same(found.state, ended)
