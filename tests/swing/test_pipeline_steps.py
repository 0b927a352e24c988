"""The Beam pipeline's steps, in memory by a stand-in for Beam: the neighbours of `fit_swing`,
read back from files.
"""

import collections
import sys
import types

import numpy as np
import pytest

from gr4ad_jax import config
from gr4ad_jax.swing import pipeline, swing

Log = collections.namedtuple("Log", "request user ad split")


class Step:
  """A transform: a function from a list to a list, with or without a label."""

  def __init__(self, run):
    self.run = run

  def __rrshift__(self, label):
    return self


class Values(list):
  """A collection."""

  def __or__(self, step):
    return Values(step.run(self))


class Pipeline(Values):
  """The start of all collections."""

  def __init__(self, argv):
    if "--runner=Nothing" in argv:
      raise ValueError("no such runner\nsecond line")

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass


Single = collections.namedtuple("Single", "values")


def plain(arguments):
  """Arguments, with a side input's one value."""
  return [one.values[0] if isinstance(one, Single) else one for one in arguments]


def smallest(most):
  def run(pairs):
    of = collections.defaultdict(list)
    for key, value in pairs:
      of[key].append(value)
    return [(key, sorted(values)[:most]) for key, values in of.items()]

  return Step(run)


def write(prefix):
  def run(lines):
    for part in (0, 1):
      with open(f"{prefix}-0000{part}-of-00002", "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines[part::2])
    return []

  return Step(run)


BEAM = types.SimpleNamespace(
  Pipeline=Pipeline,
  Create=lambda values: Step(lambda _: values),
  Reshuffle=lambda: Step(lambda values: values[::-1]),
  Map=lambda f, *more: Step(lambda values: [f(value, *plain(more)) for value in values]),
  FlatMap=lambda f, *more: Step(
    lambda values: [made for value in values for made in f(value, *plain(more))]
  ),
  CombineGlobally=lambda f: Step(lambda values: [f(values)]),
  pvalue=types.SimpleNamespace(AsSingleton=Single),
  combiners=types.SimpleNamespace(Top=types.SimpleNamespace(SmallestPerKey=smallest)),
  io=types.SimpleNamespace(WriteToText=write),
)


def prepared(log, num_ads):
  """A stand-in for TFDS that holds a log by user, and as many ads."""
  train = log.split == 0
  examples = [
    {name: getattr(log, name)[train & (log.user == user)] for name in ("request", "ad")}
    for user in range(log.user.max() + 1)
  ]

  def builder(folder):
    counts = {"events": {"train": len(examples)}, "ads": {"ads": num_ads}}[folder]
    splits = {name: types.SimpleNamespace(num_examples=count) for name, count in counts.items()}
    source = types.SimpleNamespace(__getitems__=lambda rows: [examples[row] for row in rows])
    return types.SimpleNamespace(
      info=types.SimpleNamespace(splits=splits), as_data_source={"train": source}.get
    )

  return types.SimpleNamespace(builder_from_directory=builder)


def make_log(single):
  """Visits of several ads, or of one each."""
  rng = np.random.default_rng(0)
  visit = np.arange(400) if single else rng.integers(60, size=400)
  user = rng.integers(13, size=400)[visit]
  ad = rng.integers(9, size=400)
  return Log(*(column.astype(np.int32) for column in (visit, user, ad, visit % 11 == 0)))


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize(
  "changed",
  [
    {},
    {
      "swing_visits": 7,
      "swing_basket": 4,
      "swing_neighbors": 3,
      "swing_support": 3,
      "swing_alpha": 0.5,
    },
  ],
)
def test_equals_one_machine(monkeypatch, tmp_path, single, changed):
  monkeypatch.setattr(pipeline, "_USERS", 5)
  log, sid = make_log(single), config.SidConfig(**changed)
  monkeypatch.setitem(sys.modules, "apache_beam", BEAM)
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", prepared(log, 10))
  expected = swing.fit_swing(
    log, 10, alpha=sid.swing_alpha, neighbors=sid.swing_neighbors,
    max_users_per_item=sid.swing_visits, max_items_per_user=sid.swing_basket,
    min_support=sid.swing_support, seed=4,
  )  # fmt: skip
  found = pipeline.run({"events": "events", "ads": "ads"}, sid, 4, str(tmp_path))
  assert (expected.ads_NK >= 0).any() and (
    expected.ads_NK[9] == -1
  ).all()  # the tenth was never taken
  np.testing.assert_array_equal(found.ads_NK, expected.ads_NK)
  np.testing.assert_array_equal(found.similarity_NK, expected.similarity_NK)
  assert found.ads_NK.dtype == np.int32 and found.similarity_NK.dtype == np.float32


def test_options_and_settings_that_are_refused(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "apache_beam", BEAM)
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.SimpleNamespace())
  with pytest.raises(config.ConfigError) as told:
    pipeline.run({}, config.SidConfig(), 0, str(tmp_path), ["--runner=Nothing", "--x"])
  assert str(told.value) == "--beam_options=--runner=Nothing --x is not allowed: no such runner"
  for name in ("neighbors", "max_users_per_item", "max_items_per_user"):
    with pytest.raises(ValueError, match=f"{name} is 0; 1 or more is needed"):
      pipeline.similar_ads(Values(), **{name: 0})


def test_the_largest_visit_of_users():
  nothing = np.array([], int)
  examples = [
    (0, np.array([5, 5, 5, 6]), np.array([1, 1, 2, 3])),
    (1, np.array([7]), np.array([1])),
  ]
  examples.append((2, nothing, nothing))
  assert [pipeline._largest(example) for example in examples] == [2, 1, 0]
  assert pipeline._most([2, 1, 0]) == 2 and pipeline._most([]) == 0
