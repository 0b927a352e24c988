"""BTDNet as a family, from a small run of `experiments.train`: what it writes, and its use."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image

from gr4ad_jax.config import load_config
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.runs import run
from gr4ad_jax.segmentation import metrics, task
from gr4ad_jax.segmentation.predict import Predictor
from gr4ad_jax.segmentation.segmenter import Segmenter
from tests import tiny

pytestmark = pytest.mark.long
FLAGS = (
  "--family=btdnet", "--train_scenes=12", "--eval_scenes=4", "--decoder_width=4", "--dmols=both",
  "--batch_size=4", "--max_steps=4", "--epochs=9", "--log_every=2", "--eval_every=2",
  "--save_every=2", "--warmup_steps=1", "--eval_sentences=7",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, compile_cache):
  folder = tmp_path_factory.mktemp("btdnet")
  flags = (*FLAGS, f"--scenes_dir={folder}/data")
  done = tiny.run("train", *flags, f"--workdir={folder}/run")
  assert (done.status, done.err) == (0, ""), done
  return folder, flags, done.out


def test_it_trains_tells_its_data_and_is_scored_beside_its_controls(trained):
  folder, _, out = trained
  assert "aerial_scenes: train 36 sentences of 12 images; valid 12" in out
  assert "sentences/s" in out and "rebuilt from the abstract" in out
  saved = json.loads((folder / "run" / "eval" / "metrics.json").read_text())
  assert set(saved["controls"]) == {
    "shuffled sentences", "noun alone", "without position and relation", "everything",
    "class alone", "class and attributes",
  }  # fmt: skip
  assert saved["sentences"] == 12 and saved["split"] == "test"
  for name in ("oIoU", "mIoU", "Pr@0.5", "F"):
    one = saved["metrics"][name]
    assert 0 <= one["low"] <= one["mean"] <= one["high"] <= 1
  assert (folder / "run" / "eval" / "examples.png").stat().st_size > 1000
  assert (
    (folder / "run" / "vocab.txt").read_text().startswith("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
  )
  lines = [json.loads(x) for x in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
  found = set().union(*lines)
  assert {
    "train/mask_loss",
    "train/text_loss",
    "train/map_loss",
    "train/oIoU",
    "valid/oIoU",
  } <= found


def test_the_same_command_goes_on_and_another_shape_is_refused(trained):
  folder, flags, _ = trained
  again = tiny.run("train", *flags, f"--workdir={folder}/run", "--noevaluate")
  assert again.status == 0 and "finished already" in again.out
  other = tiny.run("train", *flags, "--bsc=off", f"--workdir={folder}/run")
  assert other.status == 2 and "--bsc=off is not allowed: the run in" in other.err


@pytest.fixture(scope="module")
def opened(trained):
  return task.SegmentationTask.open(load_config(str(trained[0] / "run")), started=True)


@pytest.fixture(scope="module")
def params(opened):
  return run.load_params(opened.config, lambda: opened.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def predictor(opened):
  return Predictor(opened.model)


def test_valid_is_judged_on_its_sample_by_all_its_sums(opened, params, predictor):
  found = opened.evaluation("valid")(params)
  rows = np.sort(np.random.default_rng(0).permutation(12)[:7])
  encoded = opened.splits["valid"].encoded(opened.pieces, 20)
  counts = predictor.counts(params, encoded, rows)
  for name, value in metrics.values(counts).items():
    assert found[name] == pytest.approx(value), name


def test_masks_do_not_depend_on_the_batch_they_are_made_in(opened, params, predictor):
  encoded = opened.splits["test"].encoded(opened.pieces, 20)
  batch = encoded.batch(np.arange(12))
  inputs = (batch.image_BHW3, batch.tokens_BN, batch.mask_BN)
  together = predictor.probability(params, *inputs)
  assert together.shape == (12, 64, 64)
  alone = predictor.probability(params, *(x[5:6] for x in inputs))
  np.testing.assert_allclose(together[5], alone[0], atol=1e-5)


def test_segmenting_an_image_of_another_size(trained, opened, params, predictor, tmp_path):
  folder = trained[0]
  split = opened.splits["test"]
  small = split.image(split.row[:1])[0]
  image = Image.fromarray(small).resize((96, 80), Image.Resampling.NEAREST)
  image.save(tmp_path / "field.png")
  segmenter = Segmenter.load(str(folder / "run"))
  found = segmenter.segment(str(tmp_path / "field.png"), split.text[0])
  assert found.probability.shape == found.mask.shape == (80, 96) and found.unknown == ()
  np.testing.assert_array_equal(found.image, np.asarray(image))
  own = segmenter.segment(small, split.text[0])
  encoded = split.encoded(opened.pieces, 20)
  expected = predictor.masks(params, encoded, np.array([0]))[0]
  np.testing.assert_array_equal(own.mask, expected)
  done = tiny.run(
    "segment", f"--workdir={folder}/run", f"--image={tmp_path}/field.png",
    "--text=the purple ship", f"--output={tmp_path}/out",
  )  # fmt: skip
  assert done.status == 0 and "the run's sentences have no purple" in done.out
  mask = np.asarray(Image.open(tmp_path / "out" / "field_mask.png"))
  again = segmenter.segment(str(tmp_path / "field.png"), "the purple ship")
  np.testing.assert_array_equal(mask > 0, again.mask)
  overlay = np.asarray(Image.open(tmp_path / "out" / "field_overlay.png"))
  assert overlay.shape == (80, 96, 3)


def test_the_guide_s_python_runs_as_it_stands(trained, opened, tmp_path, monkeypatch):
  page = pathlib.Path(__file__).parents[2] / "docs/guide/segment.md"
  code = re.search(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[1]
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs" / "btdnet").symlink_to(trained[0] / "run")
  split = opened.splits["test"]
  Image.fromarray(split.image(split.row[:1])[0]).save(tmp_path / "field.png")
  monkeypatch.chdir(tmp_path)
  names = {}
  exec(compile(code, str(page), "exec"), names)
  assert names["found"].mask.shape == names["found"].probability.shape == (64, 64)


@pytest.mark.parametrize(
  ("image", "text", "message"),
  [
    (np.zeros((4, 4), np.uint8), "a ship", r"the image is uint8\[4, 4\]"),
    (np.zeros((4, 4, 3)), "a ship", r"the image is float64\[4, 4, 3\]"),
    (np.zeros((4, 4, 3), np.uint8), "  ", "--text= is not allowed"),
    ("none.png", "a ship", "none.png: there is no such picture"),
  ],
)
def test_what_cannot_be_segmented_is_told(trained, image, text, message):
  with pytest.raises(DataError, match=message):
    Segmenter.load(str(trained[0] / "run")).segment(image, text)
