"""A run on a folder of examples against the same run on the log, in memory."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from gr4ad_jax.config import ConfigError, SidConfig, TrainConfig, validate
from gr4ad_jax.data.schema import SPLITS
from gr4ad_jax.evaluation import protocols
from gr4ad_jax.examples import preparing
from gr4ad_jax.examples.preparing import Options
from gr4ad_jax.requests import inputs, request_task
from tests import tiny
from tests.examples import made

EXACT = Options(form="exact", partitions=2)


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
  """(on the log, on its examples)."""
  folder = tmp_path_factory.mktemp("log")
  made.write_ads(folder / "ads.csv")
  made.write_files(folder / "log", made.rows(), (made.START + 5 * made.DAY,))
  np.save(folder / "vectors.npy", np.random.default_rng(0).normal(size=(made.ADS, 8)))
  encoder = str(folder / "vectors.npy")
  sid = SidConfig(codebooks=(4, 3, 9), tower_steps=0, kmeans_iterations=2, encoder=encoder)
  training = TrainConfig(batch_size=6, max_steps=3)
  log = made.config_of(folder, data_dir=str(folder / "data"))
  log = dataclasses.replace(log, sid=sid, training=training, workdir=str(folder / "run"))
  preparing.prepare(str(folder / "examples"), log, EXACT)
  data = dataclasses.replace(
    log.data, ads_path="", events_path="", examples_path=str(folder / "examples")
  )
  return log, dataclasses.replace(log, data=data, workdir=str(folder / "other"))


@pytest.fixture(scope="module")
def both(configs):
  """The inputs of the two runs."""
  return [inputs.prepare_inputs(config) for config in configs]


def test_what_a_run_makes_of_examples_is_what_it_makes_of_the_log(configs, both):
  one, two = both
  np.testing.assert_array_equal(one.index.codes_NT, two.index.codes_NT)
  np.testing.assert_array_equal(one.neighbors.ids, two.neighbors.ids)
  np.testing.assert_array_equal(one.neighbors.cosine, two.neighbors.cosine)
  assert one.ecpm.edges.tolist() == two.ecpm.edges.tolist() and one.ecpm.clip == two.ecpm.clip
  counts = one.counts(), two.counts()
  for name in ("origin", "width", "num_ads"):
    assert getattr(counts[0], name) == getattr(counts[1], name)
  for name in ("ad", "bucket", "seen", "repeats", "units"):
    assert getattr(counts[0], name).tolist() == getattr(counts[1], name).tolist(), name
  for learned in zip(*(some.learned_lines(configs[0]) for some in both), strict=True):
    assert learned[0].tolist() == learned[1].tolist()
  for split in SPLITS:
    assert one.has_targets(configs[0], split) and two.has_targets(configs[1], split)
    rows = [protocols.eval_requests(some.dataset, split) for some in both]
    assert rows[0].target_ad.tolist() == rows[1].target_ad.tolist()


def test_every_step_has_the_same_batch(configs, both):
  """By two processes of a job, in the order of the seed; the later epochs draw other targets."""
  tasks = [request_task.make(config, some) for config, some in zip(configs, both, strict=True)]
  assert tasks[0].source.steps_per_epoch == tasks[1].source.steps_per_epoch > 3
  for step in (0, 3, 11):
    for process in range(2):
      wanted, found = (task.source.batch(step, process, 2) for task in tasks)
      jax.tree.map(np.testing.assert_array_equal, wanted, found)
      assert wanted.target_mask_BM.any()
  for name, edges in tasks[0]._edges.items():
    np.testing.assert_array_equal(edges, tasks[1]._edges[name])


def test_settings_that_examples_do_not_suit_are_refused(configs, both):
  config = configs[1]

  def changed(section, **knobs):
    part = dataclasses.replace(getattr(config, section), **knobs)
    return dataclasses.replace(config, **{section: part})

  for other, words in (
    (changed("objective", objective="dpo"), "--objective=dpo is not allowed: only 'vsl'"),
    (changed("search", reranker="neighbors"), "--reranker=neighbors is not allowed"),
    (changed("data", until="2024-01-02"), "--until=2024-01-02 is not allowed"),
    (
      changed("data", dataset="online_retail", on_unknown_ad="error"),
      "--dataset=online_retail is not allowed",
    ),
  ):
    with pytest.raises(ConfigError, match=words):
      validate(other)
  with pytest.raises(ConfigError, match="--loader_processes=1 is not allowed: 0 without"):
    validate(dataclasses.replace(configs[0], training=TrainConfig(loader_processes=1)))
  with pytest.raises(ConfigError, match="--rising_slots=3 is not allowed: the examples in"):
    inputs.prepare_inputs(changed("data", rising_slots=3))
  with pytest.raises(ConfigError, match="hold no features of other ads"):
    _ = both[1].contexts(config, "test").pairs


@pytest.mark.long
def test_a_run_on_examples_is_the_run_on_the_log(tmp_path):
  """By the binaries: the same losses, the same table; by processes of grain too."""
  log = tiny.write_log(tmp_path / "log", users=12)
  source = tiny.source_flags(log)
  prepared = tiny.run(
    "prepare", *source, *(flag for flag in tiny.SETTINGS if "slots" in flag),
    f"--out={tmp_path}/examples", "--workers=0", "--form=exact", "--partitions=2",
  )  # fmt: skip
  assert prepared.status == 0 and "examples in 2 shards" in prepared.out, prepared
  about = ("--dataset=ad_log", f"--examples_path={tmp_path}/examples")
  found = {}
  for name, flags in (
    ("log", source), ("examples", about), ("grain", (*about, "--loader_processes=2")),
  ):  # fmt: skip
    workdir = tmp_path / name
    more = ("--max_steps=6", "--log_every=1", f"--workdir={workdir}")
    run = tiny.run("train", *tiny.settings("gr4ad", *more), *flags)
    assert run.status == 0, run
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line).get("train/loss") for line in lines]
    scored = json.loads(pathlib.Path(workdir, "eval", "metrics.json").read_text())
    found[name] = [loss for loss in losses if loss is not None], scored["systems"]
  assert len(found["log"][0]) == 6
  assert found["log"] == found["examples"] == found["grain"]
