"""The run that is shipped: its lists and figures are those of its card, and README has them."""

import json
import pathlib
import re

import numpy as np
import pytest

from gr4ad_jax import Recommender, checksums
from gr4ad_jax.delivery import publish
from gr4ad_jax.runs import published
from tests import tiny

_FOLDER = published.SHIPPED / "online_retail"
_ROOT = pathlib.Path(__file__).parents[1]
_FLAGFILE = _ROOT / "experiments" / "flagfiles" / "online_retail.flags"


@pytest.fixture(scope="module")
def card():
  return publish.load_card(str(_FOLDER))


def test_it_is_small_whole_and_what_its_card_says(card):
  files = [path for path in _FOLDER.rglob("*") if path.is_file()]
  assert sum(path.stat().st_size for path in files) < 10e6
  for folder in (_FOLDER, *(path for path in _FOLDER.iterdir() if path.is_dir())):
    checksums.check_tree(str(folder))
    listed = checksums.listed(str(folder))
    assert {path.name for path in folder.iterdir() if path.is_file()} == {*listed, checksums.NAME}
  assert (card["precision"], card["license"]) == ("float16", "cc-by-4.0")
  assert (_FOLDER / "README.md").read_text(encoding="utf-8") == publish.in_words(card)
  recommender = Recommender.from_pretrained("online_retail")
  assert len(recommender.ads) == card["ads"] == 3740
  assert recommender.config.training.epochs == card["settings"]["epochs"] == 3


def test_its_figures_are_those_of_the_default_run(card):
  """The run's to the last place that the flagfile states; half precision moves them little."""
  header = _FLAGFILE.read_text(encoding="utf-8")
  stated = {name: float(value) for name, value in re.findall(r"(\w+@\d+) (\.\d+)", header)}
  assert len(stated) == 5
  for metric, value in stated.items():
    assert card["of_the_run"][metric]["mean"] == pytest.approx(value, abs=5e-5), metric
  for metric, figure in card["of_the_run"].items():
    assert card["figures"][metric]["mean"] == pytest.approx(figure["mean"], abs=1e-3), metric
  assert card["requests"] == 2513 and card["same_lists"] > 0.9 and card["same_ads"] > 0.99


@pytest.mark.long
@pytest.mark.usefixtures("compile_cache")
def test_its_lists_are_those_of_the_run_that_was_published(card):
  recommender = Recommender.from_pretrained("online_retail")
  assert card["examples"][0]["history"] == ["85123A"]
  for example in card["examples"]:
    found = recommender.recommend(example["history"], k=10)
    theirs = {ad["ad_id"]: ad["log_p"] for ad in example["ads"]}
    assert {ad.ad_id for ad in found} == {*theirs}
    in_our_order = [theirs[ad.ad_id] for ad in found]
    np.testing.assert_allclose([ad.log_p for ad in found], in_our_order, atol=0.02)
    # Ads that the run holds apart by less than a half's rounding may change places.
    assert np.diff(in_our_order).max() < 1e-3


@pytest.mark.long
@pytest.mark.usefixtures("compile_cache")
def test_an_evaluation_finds_the_figures_of_its_card(card, tmp_path):
  done = tiny.run(
    "evaluate", "--workdir=pretrained:online_retail", f"--state_dir={tmp_path}",
    f"--data_dir={tmp_path}/data",
  )  # fmt: skip
  assert done.status == 0, done.err
  found = json.loads((tmp_path / "eval" / "metrics.json").read_text())["systems"]["gr4ad"]["all"]
  for metric, figure in card["figures"].items():
    assert found[metric]["mean"] == pytest.approx(figure["mean"], abs=1e-3), metric


@pytest.mark.long
@pytest.mark.usefixtures("compile_cache")
def test_the_readme_s_picture_is_what_its_command_draws(tmp_path):
  image = pytest.importorskip("PIL.Image")
  command = (_ROOT / "experiments" / "draw_request.py").read_text(encoding="utf-8")
  flags = re.findall(r"--(?:workdir|user)=\S+", command.partition('"""\n')[0])
  assert flags == ["--workdir=pretrained:online_retail", "--user=16769"]
  done = tiny.run("draw_request", *flags, f"--out={tmp_path}/request.png")
  assert (done.status, done.err) == (0, "")
  ours, drawn = (
    np.asarray(image.open(path).convert("L"), float)
    for path in (_ROOT / "docs" / "request.png", tmp_path / "request.png")
  )
  assert ours.shape == drawn.shape
  # Another font's edges move it by a grey level or so, another list by several.
  assert np.abs(ours - drawn).mean() < 1
