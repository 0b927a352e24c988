"""BTDNet's ablation from flags: rows of equal size, made once, taken up where they were left."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.btdnet import sizes as sizes_lib
from gr4ad_jax.config import Config, load_config, with_knobs
from gr4ad_jax.ranking import list_cache
from gr4ad_jax.runs import run
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
    (("--seeds=²",), "--seeds=² is not allowed"),
    (("--workdir=",), "--workdir= is not allowed"),
  ],
)
def test_what_is_wrong_is_refused_before_anything_is_made(tmp_path, flags, message):
  # Of a flag that is given twice the later one counts.
  done = tiny.run("ablate_btdnet", *FLAGS, f"--workdir={tmp_path}/parts", *flags)
  assert done.status == 2 and message in done.err
  assert not (tmp_path / "parts").exists()


def test_the_base_is_always_there():
  names = [row.name for row in btdnet_ablation.choose_rows(["all", "t_btd"])]
  assert names == ["base", "t_btd", "all"]


def test_a_run_of_another_family_is_refused(tmp_path):
  done = tiny.run("ablate_btdnet", "--family=requests", f"--workdir={tmp_path}/parts")
  assert done.status == 2
  assert "--family=requests is not allowed: this is for btdnet alone" in done.err


@pytest.mark.parametrize("asked", [3, 40, 700])
def test_a_row_gets_the_width_whose_parameters_are_nearest(monkeypatch, asked):
  """Against a look at all widths; also beyond the width that was asked for, and far above."""

  def parameters(_, row, width):
    streams = {"single": 1, "shared": 1, "twin": 2}[row.decoder]
    return 900 + (80 if row.bsc == "both" else 0) + streams * (18 * width**2 + 31 * width)

  monkeypatch.setattr(Ablation, "_parameters", parameters)
  config = with_knobs(Config(family="btdnet"), {"decoder_width": asked})
  ablation = Ablation(config)
  rows = {row.name: row for row in btdnet_ablation.ROWS}
  target = parameters(None, rows["all"], asked)
  for name, row in rows.items():
    away = [abs(parameters(None, row, width) - target) for width in range(1, 3 * asked)]
    assert ablation._width(row) == 1 + int(np.argmin(away)), name
  assert ablation._width(rows["all"]) == asked < ablation._width(rows["base"])


@pytest.mark.long
def test_rows_have_about_as_many_parameters(tmp_path, monkeypatch):
  config = with_knobs(
    Config(workdir=str(tmp_path), family="btdnet"),
    {"train_scenes": 12, "eval_scenes": 4, "scenes_dir": str(tmp_path), "decoder_width": 20},
  )
  rows = {row.name: row for row in btdnet_ablation.ROWS}
  ablation = Ablation(config)
  widths = {name: ablation._width(rows[name]) for name in ("base", "bsc", "t_btd", "d_mols", "all")}
  sizes = {name: ablation._parameters(rows[name], width) for name, width in widths.items()}
  # Those of the model itself, counted apart.
  for name in ("base", "all"):
    own = ablation._row_config(dataclasses.replace(rows[name], dmols="off"), 0, widths[name]).own
    model = sizes_lib.make(own, len(ablation._first.pieces.words))
    image = jnp.zeros((1, 64, 64, 3), jnp.uint8)
    tokens = jnp.zeros((1, own.max_pieces), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, tokens, tokens == 0)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == sizes[name]
  assert widths["all"] == 20 and widths["base"] > 20
  # One channel more or less is the finest step there is.
  wider = ablation._parameters(rows["base"], widths["base"] + 1)
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
  assert found["trained_steps"] == 2
  # Rows of one table have one length, and are judged alike.
  for other in ("--max_steps=4", "--max_steps=1", "--eval_sentences=5"):
    refused = tiny.run("ablate_btdnet", *flags, "--rows=t_btd", other)
    assert refused.status == 2 and f"{other} is not allowed: the run in" in refused.err
  assert len(trained) == 2
