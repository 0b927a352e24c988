"""The published layouts, read back as they were written; what is wrong is told in one line."""

import dataclasses
import logging
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.scenes import prepare, run_lengths
from gr4ad_jax.scenes.builders import BUILDERS, base
from gr4ad_jax.scenes.sections import SegmentationConfig
from tests.segmentation import layouts


def _own(kind, folder, **more):
  return SegmentationConfig(scenes=kind, scenes_path=str(folder), image_size=16, **more)


def _small(mask, side=16):
  """The nearest pixel to each cell's centre."""
  height, width = mask.shape
  return np.array([
    [mask[int((i + 0.5) * height / side), int((j + 0.5) * width / side)] for j in range(side)]
    for i in range(side)
  ])  # fmt: skip


def test_ref_seg_rs_is_read_as_published(tmp_path):
  masks = layouts.ref_seg_rs(tmp_path)
  splits = BUILDERS["ref_seg_rs"].read(_own("ref_seg_rs", tmp_path))
  train = splits["train"]
  assert train.text == ["vehicle on the road", "all buildings along the road", "a car"]
  assert train.images == 2 and train.row.tolist() == [0, 1, 0]
  assert [len(splits[name]) for name in ("valid", "test")] == [1, 1]
  for row, name in ((0, "1"), (1, "2")):
    np.testing.assert_array_equal(train.masks(np.array([row]))[0], _small(masks[name]))
  whole = Image.open(tmp_path / "images" / "2.tif").resize((16, 16), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(train.image(np.array([1]))[0], np.asarray(whole))


def test_rrsis_d_is_read_as_published(tmp_path, caplog):
  masks = layouts.rrsis_d(tmp_path)
  with caplog.at_level(logging.WARNING):
    splits = BUILDERS["rrsis_d"].read(_own("rrsis_d", tmp_path))
  assert "train: 1 masks of rrsis_d were flipped" in caplog.text
  assert {name: len(split) for name, split in splits.items()} == {
    "train": 4, "valid": 1, "test": 1,
  }  # fmt: skip
  train = splits["train"]
  assert train.row.tolist() == [0, 1, 2, 1] and train.images == 3
  for row, number in enumerate((0, 1, 2, 5)):
    np.testing.assert_array_equal(train.masks(np.array([row]))[0], _small(masks[number]))
    begin, end = train.noun[row]
    assert train.text[row][begin:end] == ("ship", "storage tank")[number % 2]


def test_coco_text_equals_the_library_that_made_the_data():
  mask_lib = pytest.importorskip("pycocotools.mask")
  rng = np.random.default_rng(0)
  for height, width, share in ((7, 5, 0.5), (40, 24, 0.02), (64, 64, 0.9), (3, 200, 0.0)):
    mask = rng.random((height, width)) < share
    theirs = mask_lib.encode(np.asfortranarray(mask.astype(np.uint8)))
    for counts in (theirs["counts"], theirs["counts"].decode(), layouts.runs_of(mask)):
      form = {"size": [height, width], "counts": counts}
      np.testing.assert_array_equal(run_lengths.decode(form, height, width, "x"), mask)


@pytest.mark.parametrize("kind", ["ref_seg_rs", "rrsis_d", "aerial_scenes"])
def test_prepared_data_are_what_was_read_and_are_read_once(kind, tmp_path, monkeypatch):
  if kind == "aerial_scenes":
    own = SegmentationConfig(train_scenes=3, eval_scenes=2)
  else:
    getattr(layouts, kind)(tmp_path / "source")
    own = _own(kind, tmp_path / "source")
  own = dataclasses.replace(own, scenes_dir=str(tmp_path / "prepared"))
  read = BUILDERS[kind].read(own)
  first = prepare.load(own)
  monkeypatch.setattr(BUILDERS[kind], "read", None)
  second = prepare.load(own)
  monkeypatch.setattr(base, "IN_MEMORY", 0)  # each image from disk, when it is asked for
  for splits in (first, second, prepare.load(own)):
    assert base.digest(splits) == base.digest(read)
    for name, split in splits.items():
      rows = np.arange(split.images)[::-1]
      np.testing.assert_array_equal(split.image(rows), read[name].image(rows))


def test_damaged_data_are_prepared_again_and_changed_sources_anew(tmp_path, caplog):
  layouts.ref_seg_rs(tmp_path / "source")
  own = _own("ref_seg_rs", tmp_path / "source", scenes_dir=str(tmp_path / "prepared"))
  prepare.load(own)
  (file,) = (tmp_path / "prepared").rglob("*sentences/*/*train*array_record*")
  file.write_bytes(file.read_bytes()[:-40])
  with caplog.at_level(logging.WARNING):
    assert len(prepare.load(own)["train"]) == 3
  assert "is damaged and is prepared again" in caplog.text
  with open(tmp_path / "source" / "output_phrase_train.txt", "a") as lines:
    lines.write("2 one more\n")
  assert len(prepare.load(own)["train"]) == 4


class _Hostile:
  def __reduce__(self):
    return os.system, ("touch hostile",)


def _bad_ref(**changes):
  return lambda refs, instances: refs[0].update(changes)


def _bad_annotation(**changes):
  return lambda refs, instances: instances["annotations"][0].update(changes)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (_bad_ref(split="dev"), r"p, ref 1: split 'dev'; any of train, val, test is known"),
    (_bad_ref(sentences=[]), "ref 1: it has no sentence"),
    (_bad_ref(ann_id=7), "annotation 7: there is no such annotation"),
    (_bad_ref(sentences=_Hostile()), r"refs\(unc\)\.p is refused: it asks for posix\.system"),
    (lambda refs, _: refs[1].pop("ann_id"), "ref 2: it has no 'ann_id'"),
    (lambda refs, _: refs.clear(), "a list of refs is needed"),
    (_bad_annotation(image_id=9), "annotation 100: image_id 9 is not among the images"),
    (_bad_annotation(bbox=None), "annotation 100: bbox None is no list"),
    (_bad_annotation(bbox=[20, 35, 2, 2]), "most of its mask lies outside its bbox"),
    (_bad_annotation(segmentation=[[1, 2, 3, 4]]), "is no run-length mask with size and counts"),
    (_bad_annotation(segmentation={"size": [24, 40], "counts": [960]}),
     r"size \[24, 40\], but the picture has \[40, 24\]"),
    (_bad_annotation(segmentation={"size": [40, 24], "counts": [10**9]}),
     "runs add up to 1000000000 pixels, not 960"),
    (_bad_annotation(segmentation={"size": [40, 24], "counts": [-1, 961]}), "no length of a run"),
    (_bad_annotation(segmentation={"size": [40, 24], "counts": "~~~"}), "at character 1"),
    (_bad_annotation(segmentation={"size": [40, 24], "counts": "ooo"}), "at character 4"),
    (lambda _, instances: instances.pop("images"), "'images' must be a list of records"),
    (lambda _, instances: instances["images"][0].update(file_name="../x"), "is no file's name"),
    (lambda _, instances: instances["images"][0].update(file_name="x.jpg"), "no such picture"),
  ],
)  # fmt: skip
def test_what_is_wrong_with_rrsis_d_is_told_before_anything_is_written(change, message, tmp_path):
  layouts.rrsis_d(tmp_path / "source", change)
  own = _own("rrsis_d", tmp_path / "source", scenes_dir=str(tmp_path / "prepared"))
  with pytest.raises(DataError, match=message) as raised:
    prepare.load(own)
  assert "\n" not in str(raised.value)
  assert not (tmp_path / "prepared").exists() and not os.path.exists("hostile")


def test_a_pickle_may_name_no_class(tmp_path):
  (tmp_path / "rrsisd").mkdir()
  (tmp_path / "rrsisd" / "instances.json").write_text("{}")
  file = tmp_path / "rrsisd" / "refs(unc).p"
  for content, message in (
    (pickle.dumps([np.float64(1)]), "asks for numpy"),
    (pickle.dumps([_Hostile()]), "asks for posix.system"),
    (b"cos\nsystem\n(S'touch hostile'\ntR.", "asks for os.system"),
    (b"junk", "no pickle that can be read"),
    (pickle.dumps({"a": 1}), "holds a dict"),
  ):
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
      BUILDERS["rrsis_d"].read(_own("rrsis_d", tmp_path))
  assert not os.path.exists("hostile")


def _phrases(text):
  return lambda folder: (folder / "output_phrase_val.txt").write_text(text)


def _mask(array):
  return lambda folder: Image.fromarray(array).save(folder / "masks" / "3.tif")


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (lambda folder: (folder / "output_phrase_val.txt").unlink(), "_val.txt: there is no such file"),
    (_phrases("3\n"), "line 1: '3' has no sentence"),
    (_phrases("\n"), "no line with a sentence"),
    (_phrases("../3 x\n"), "is no ID of a picture"),
    (lambda folder: (folder / "masks" / "3.tif").unlink(), "3.tif: there is no such picture"),
    (lambda folder: (folder / "masks" / "3.tif").write_bytes(b"II*"), "no picture that can be"),
    (_mask(np.zeros((32, 32), np.uint8)), "no value above 50"),
    (_mask(np.full((32, 31), 255, np.uint8)), "32 x 31 pixels, but .*3.tif has 32 x 32"),
  ],
)
def test_what_is_wrong_with_ref_seg_rs_is_told(spoil, message, tmp_path):
  layouts.ref_seg_rs(tmp_path)
  spoil(tmp_path)
  with pytest.raises(DataError, match=message) as raised:
    BUILDERS["ref_seg_rs"].read(_own("ref_seg_rs", tmp_path))
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["ref_seg_rs", "rrsis_d"])
def test_a_data_set_without_its_folder_is_told(kind):
  with pytest.raises(DataError, match=f"--scenes_path= is not allowed: --scenes={kind} needs"):
    prepare.load(SegmentationConfig(scenes=kind))


def test_a_picture_that_unfolds_too_far_is_refused(tmp_path, monkeypatch):
  from gr4ad_jax.scenes import pictures

  monkeypatch.setattr(pictures, "MOST_PIXELS", 100)
  path = tmp_path / "big.png"
  Image.fromarray(layouts.picture(0, 11, 10)).save(path)
  with pytest.raises(DataError, match="10 x 11 pixels; 100 are allowed"):
    pictures.read_whole(str(path))
