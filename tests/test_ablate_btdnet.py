"""BTDNet's ablation from flags: rows of equal size, made once, taken up where they were left."""

import json
import types

import numpy as np
import pytest

from gr4ad_jax.config import Config, ConfigError, load_config, with_knobs
from gr4ad_jax.ranking import list_cache
from gr4ad_jax.runs import run
from gr4ad_jax.segmentation.task import SegmentationTask
from gr4ad_jax.studies import btdnet_ablation
from gr4ad_jax.studies.btdnet_ablation import Ablation
from tests import tiny

FLAGS = (
  "--family=btdnet", "--train_scenes=12", "--eval_scenes=4", "--batch_size=4", "--max_steps=2",
  "--epochs=9", "--log_every=2", "--eval_every=2", "--save_every=2", "--warmup_steps=1",
  "--eval_sentences=7", "--decoder_width=6",
)  # fmt: skip


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("--rows=magic",), "--rows=magic is not allowed: any of base, bsc_vision"),
    (("--seeds=a",), "--seeds=a is not allowed"),
    (("--family=requests",), "--family=requests is not allowed: this is for btdnet alone"),
  ],
)
def test_what_is_wrong_is_refused_before_anything_is_made(tmp_path, flags, message):
  flags = tuple(flag for flag in FLAGS if flags != ("--family=requests",)) + flags
  done = tiny.run("ablate_btdnet", *flags, f"--workdir={tmp_path}/parts")
  assert done.status == 2 and message in done.err
  assert not (tmp_path / "parts").exists()


def test_the_base_is_always_there():
  names = [row.name for row in btdnet_ablation.choose_rows(["all", "t_btd"])]
  assert names == ["base", "t_btd", "all"]


def test_rows_have_about_as_many_parameters(tmp_path):
  config = with_knobs(
    Config(workdir=str(tmp_path), family="btdnet"),
    {"train_scenes": 12, "eval_scenes": 4, "scenes_dir": str(tmp_path), "decoder_width": 32},
  )
  first = SegmentationTask.open(config)
  ablation = Ablation(config, btdnet_ablation.ROWS)
  widths = ablation._widths(first)
  rows = {row.name: row for row in btdnet_ablation.ROWS}
  sizes = {
    name: ablation._parameters(first, ablation._row_config(rows[name], 0, width))
    for name, width in widths.items()
  }
  assert widths["all"] == 32 and widths["base"] > 32
  # One channel more or less is the finest step there is.
  wider = ablation._parameters(first, ablation._row_config(rows["base"], 0, widths["base"] + 1))
  for name, size in sizes.items():
    assert abs(size - sizes["all"]) <= wider - sizes["base"], name
  # What rebuilds in training is not counted.
  assert widths["d_mols"] == widths["base"] and sizes["d_mols"] == sizes["base"]


def test_a_stop_in_a_run_stops_all(tmp_path, monkeypatch):
  config = Config(workdir=f"{tmp_path}/seed0/base", family="btdnet")
  monkeypatch.setattr(run, "start", lambda _: None)
  stopped = types.SimpleNamespace(status="preempted")
  with pytest.raises(list_cache.Stopped, match="seed0/base"):
    Ablation(config, train=lambda _: stopped)._made(config)


@pytest.mark.long
def test_a_table_is_made_once_and_grows_by_seeds(tmp_path, compile_cache, monkeypatch):
  flags = (*FLAGS, f"--scenes_dir={tmp_path}/data", f"--workdir={tmp_path}/parts")
  done = tiny.run("ablate_btdnet", *flags, "--rows=t_btd,d_mols")
  assert done.status == 0, done.err
  folder = tmp_path / "parts"
  found = json.loads((folder / "ablation.json").read_text())
  assert list(found["rows"]) == ["base", "t_btd", "d_mols"]
  assert (folder / "ablation.md").read_text() in done.out + "\n"
  own = load_config(str(folder / "seed0" / "d_mols")).own
  assert (own.bsc, own.decoder, own.dmols) == ("off", "single", "both")
  kept = np.load(folder / "seed0" / "base" / "eval" / "counts.npz")
  counts = kept["run/both"].sum() / kept["run/either"].sum()
  assert found["by_seed"]["base"]["0"] == pytest.approx(counts)
  trained = []
  train = run.train
  monkeypatch.setattr(
    run, "train", lambda task, *a: (trained.append(task.folder), train(task, *a))[1]
  )
  assert tiny.run("ablate_btdnet", *flags, "--rows=t_btd,d_mols").status == 0
  assert not trained and json.loads((folder / "ablation.json").read_text()) == found
  # Another seed of one row: the other one's runs stay in the table.
  done = tiny.run("ablate_btdnet", *flags, "--rows=t_btd", "--seeds=1")
  assert done.status == 0 and [path.rsplit("parts/")[1] for path in trained] == [
    "seed1/base", "seed1/t_btd",
  ]  # fmt: skip
  later = json.loads((folder / "ablation.json").read_text())
  assert later["by_seed"]["t_btd"].keys() == {"0", "1"} and "d_mols" not in later["rows"]
  # A longer run is another one.
  longer = tiny.run("ablate_btdnet", *flags, "--rows=base", "--max_steps=4")
  assert longer.status == 0 and trained[-1].endswith("seed0/base") and len(trained) == 3
  with pytest.raises(ConfigError):
    btdnet_ablation.choose_rows(["magic"])
