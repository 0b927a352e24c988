"""A log's later part as a stream, and what a recorder keeps of it."""

import types

import numpy as np
import pytest

from gr4ad_jax.builders.prepare import first_times, load_dataset, moment
from gr4ad_jax.config import load_config
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.learning import guard, replay
from gr4ad_jax.learning.prequential import Prediction
from gr4ad_jax.studies import replay_table
from tests.learning import streams
from tests.learning.test_guard import requests_of

BEGIN, END = moment("2024-01-04"), moment("2024-01-12")


@pytest.fixture(scope="module")
def dataset(small_run):
  return load_dataset(load_config(str(small_run)).data)


def test_a_stream_gets_the_visits_and_new_ads_of_a_time_once(dataset, tmp_path):
  stream = streams.filled(tmp_path / "s", [])
  events = dataset.events
  inside = (events.time >= BEGIN) & (events.time < END)
  visits = len(np.unique(events.request[inside]))
  assert replay.fill(stream, dataset, BEGIN, END) == visits
  ends = stream.end("events"), stream.end("ads")
  assert replay.fill(stream, dataset, BEGIN, END) == visits  # as after a stop
  assert (stream.end("events"), stream.end("ads")) == ends
  found = stream.read("events", 0)
  assert len(found) == inside.sum()
  times = [record.value["time"] for record in found]
  assert times == sorted(times)
  assert sum(record.value["value"] for record in found) == pytest.approx(events.value[inside].sum())
  first_N = first_times(dataset.ads, events)
  new = {
    str(dataset.ads.ad_id[row]) for row in np.flatnonzero((first_N >= BEGIN) & (first_N < END))
  }
  added = {record.value["ad_id"]: record.time for record in stream.read("ads", 0)}
  assert set(added) == new and new
  for record in found:  # an ad is there before the first event that names it
    assert added.get(record.value["ad_id"], 0) <= record.time


def test_what_is_recorded_is_what_the_table_reads(tmp_path):
  """Visits without a target have no row; the first group's frozen lists are the learner's."""
  recorder = replay.Recorder(str(tmp_path), ads=30)
  kept = {}
  for number in range(2):
    visits = [
      types.SimpleNamespace(
        visit_id=f"v{number}{n}", user_id=f"u{n}", begin=BEGIN + n,
        known=types.SimpleNamespace(ad=np.arange(n)),
      )
      for n in range(4)
    ]  # fmt: skip
    lists = {guard.CANDIDATE: np.arange(12)[None].repeat(3, 0) + number}
    if number:
      lists[guard.START] = lists[guard.CANDIDATE][:, ::-1]
    kept[number] = lists
    requests = requests_of([np.array([n, 31]) for n in range(3)])
    places = np.array([0, 2, 3])
    recorder(types.SimpleNamespace(number=number), Prediction(visits, places, requests, lists, {}))
  found = replay_table.Replayed.of(replay.recorded(str(tmp_path)))
  # The first user of each group has no history.
  assert found.visit.tolist() == ["v02", "v03", "v12", "v13"]
  assert found.time.tolist() == [BEGIN + 2, BEGIN + 3] * 2
  assert found.requests.target_ad.tolist() == [1, 31, 2, 31] * 2
  assert found.seen.row_E.tolist() == [0, 1, 0, 1, 2] * 2
  learned = np.concatenate([kept[n][guard.CANDIDATE][1:] for n in range(2)])
  np.testing.assert_array_equal(found.lists["learning"][0], learned)
  frozen = np.concatenate([kept[0][guard.CANDIDATE][1:], kept[1][guard.START][1:]])
  np.testing.assert_array_equal(found.lists["frozen"][0], frozen)
  assert found.known_ads == 30


def test_a_folder_without_lists_is_told(tmp_path):
  with pytest.raises(DataError, match="holds no lists: replay to it first"):
    next(replay.recorded(str(tmp_path)))
