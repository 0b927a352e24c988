"""The zoo from flags: rows of flagfiles, seeds, resumption, and what is refused."""

import json
import pathlib

import numpy as np
import pytest
from absl import flags

from experiments import flags as flags_lib
from gr4ad_jax.runs import run
from gr4ad_jax.zoo import registry
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_cache")
SHORT = ("--max_steps=3", "--eval_every=0", "--seeds=0,1", "--layers=1", "--lazy_layers=0")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
  """Flags of three rows on a small log; the zoo's folder lies beside the log. Nothing is
  trained.
  """
  folder = tmp_path_factory.mktemp("zoo")
  tiny.write_log(folder)
  (folder / "codes.flags").write_text("--model=gr4ad\n")
  (folder / "seq.flags").write_text("--model=sasrec\n--history_bias\n--dropout=0.2\n")
  (folder / "memory.flags").write_text("--model=gr4ad\n--reranker=neighbors\n")
  models = f"--models={folder}/codes.flags,{folder}/seq.flags,{folder}/memory.flags"
  return folder / "zoo", (
    *tiny.source_flags(folder),
    *tiny.SETTINGS,
    *SHORT,
    models,
    f"--workdir={folder}/zoo",
  )


@pytest.fixture(scope="module")
def made(arguments, request):
  request.getfixturevalue("compile_cache")
  folder, given = arguments
  done = tiny.run("zoo", *given)
  assert done.status == 0, done.err
  return folder, given, done


@pytest.mark.long
def test_table_has_every_model_the_simple_rows_and_costs(made):
  folder, _, done = made
  found = json.loads((folder / "zoo.json").read_text())
  assert list(found["systems"])[:2] == ["codes", "seq"] and "popularity" in found["systems"]
  assert found["seeds"]["seq"] == 2
  treated = [found["seen"][name] for name in ("codes", "seq", "memory", "ease")]
  assert treated == ["left", "biased", "left", "left"]
  assert {"all", "new"} <= set(found["systems"]["codes"]) == set(found["systems"]["ease"])
  assert found["settings"]["seq"]["dropout"] == 0.2 and found["settings"]["codes"]["width"] == 16
  for cost in found["cost"].values():
    assert cost["parameters"] > 100 and cost["decode_ms"] > 0 and cost["train_minutes"] > 0
  assert (folder / "zoo.md").read_text() in done.out + "\n"


@pytest.mark.long
def test_rows_that_differ_in_the_second_stage_share_their_runs(made):
  folder, _, _ = made
  for seed in ("seed0", "seed1"):
    assert (folder / "codes" / seed / "checkpoints").exists()
    assert sorted(path.name for path in (folder / "memory" / seed).iterdir()) == [
      "SHA256SUMS",
      "ranking_test.npz",
      "ranking_test_unseen.npz",
    ]
  one, two = (
    np.load(folder / row / "seed0/ranking_test.npz")["ad_RK"] for row in ("codes", "memory")
  )
  assert (one != two).any()


@pytest.mark.long
def test_a_ranking_of_other_settings_is_made_anew(made):
  folder, arguments, _ = made
  before = json.loads((folder / "zoo.json").read_text())
  (folder.parent / "memory.flags").write_text(
    "--model=gr4ad\n--reranker=neighbors\n--neighbor_weight=50\n"
  )
  assert tiny.run("zoo", *arguments).status == 0
  after = json.loads((folder / "zoo.json").read_text())
  assert after["settings"]["memory"]["neighbor_weight"] == 50
  assert after["systems"]["memory"] != before["systems"]["memory"]
  assert after["systems"]["codes"] == before["systems"]["codes"]


@pytest.mark.long
def test_a_second_call_trains_nothing(made, monkeypatch):
  folder, arguments, _ = made
  before = json.loads((folder / "zoo.json").read_text())
  monkeypatch.setattr(run, "train", lambda *_: pytest.fail("trained again"))
  assert tiny.run("zoo", *arguments).status == 0
  assert json.loads((folder / "zoo.json").read_text())["systems"] == before["systems"]


@pytest.mark.long
def test_scaling_suite(arguments, tmp_path):
  folder, given = arguments
  more = (f"--models={folder.parent}/codes.flags", "--suite=scaling", "--widths=8,16", "--seeds=0")
  done = tiny.run("zoo", *given, *more, f"--workdir={tmp_path}")
  assert done.status == 0, done.err
  found = json.loads((tmp_path / "scaling.json").read_text())
  assert [one["width"] for one in found["sizes"]] == [8, 16] and [
    one["beams"] for one in found["beams"]
  ][-1] == 512
  assert (
    found["sizes"][0]["parameters"] < found["sizes"][1]["parameters"]
    and found["sizes"][0]["train_loss"] > 0
  )
  assert (tmp_path / "scaling.png").exists() and (
    tmp_path / "scaling.md"
  ).read_text() in done.out + "\n"


FLAGFILES = sorted(
  (pathlib.Path(__file__).parents[1] / "experiments" / "flagfiles" / "zoo").rglob("*.flags")
)


@pytest.mark.parametrize(
  "path", FLAGFILES, ids=[f"{path.parent.name}-{path.stem}" for path in FLAGFILES]
)
def test_every_flagfile_of_the_zoo_makes_a_model(path, monkeypatch):
  monkeypatch.chdir(path.parents[4])
  values = flags.FlagValues()
  flags_lib.define_flags(values)
  source = ["--ads_path=a", "--events_path=b"] if path.parent.name == "amazon_reviews" else []
  values(["test", f"--flagfile={path}", *source])
  config = flags_lib.config_from_flags(values)
  assert config.data.dataset == path.parent.name
  registry.build(config, 100)


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--models=", "--models= is not allowed"),
    ("--models=nothing", "--models=nothing is not allowed: a path that ends in .flags, or any of"),
    ("--models=no/such.flags", "--models=no/such.flags is not allowed: there is no such file"),
    ("--seeds=x", "--seeds=x is not allowed"),
    ("--suite=scaling", "is not allowed: one, with --suite=scaling"),
    ("--widths=a", "--widths=a is not allowed"),
  ],
)
def test_mistakes_are_named(arguments, tmp_path, flag, message):
  done = tiny.run("zoo", *arguments[1], f"--workdir={tmp_path}/new", flag)
  assert done.status == 2 and message in done.err and not (tmp_path / "new").exists()


def test_rows_that_treat_seen_ads_otherwise_are_refused(arguments, tmp_path):
  (tmp_path / "other.flags").write_text("--model=gr4ad\n--seen_ads=masked\n")
  models = next(flag for flag in arguments[1] if flag.startswith("--models="))
  given = (*arguments[1], f"{models},{tmp_path}/other.flags", f"--workdir={tmp_path}/new")
  done = tiny.run("zoo", *given)
  assert done.status == 2 and not (tmp_path / "new").exists()
  assert "it has --seen_ads=masked --seen_days=0, the first row --seen_ads=left" in done.err


@pytest.fixture
def towers_rows(arguments, tmp_path):
  """Flags of the zoo but --models; and a function from rows to --models."""
  _, given = arguments
  (tmp_path / "towers.flags").write_text("--model=two_tower\n")
  (tmp_path / "found.flags").write_text("--model=gr4ad\n--retriever=towers\n")
  others = [flag for flag in given if not flag.startswith(("--models=", "--workdir=", "--seeds="))]
  rest = (*others, "--seeds=1", f"--workdir={tmp_path}/zoo")
  return rest, lambda *rows: "--models=" + ",".join(f"{tmp_path}/{row}.flags" for row in rows)


def test_a_row_whose_towers_stand_later_is_refused(towers_rows, tmp_path):
  rest, models = towers_rows
  done = tiny.run("zoo", *rest, models("found", "towers"))
  assert done.status == 2
  # The other row's own run of the same seed was looked for.
  wanted = f"--retriever={tmp_path}/zoo/towers/seed1 is not allowed: it holds no whole checkpoint"
  assert wanted in done.err


@pytest.mark.long
def test_a_row_takes_the_towers_of_an_earlier_one(towers_rows, tmp_path):
  rest, models = towers_rows
  done = tiny.run("zoo", *rest, models("towers", "found"))
  assert done.status == 0, done.err
  kept = np.load(tmp_path / "zoo/found/seed1/features/retriever.npz")
  assert len(kept["ads"]) == 24 and kept["ads"].any()
  assert not (tmp_path / "zoo/towers/seed1/features/retriever.npz").exists()
