"""Small files in exactly the layouts of RefSegRS and RRSIS-D, with pictures made here."""

import json
import pickle

import numpy as np
from PIL import Image


def picture(seed, height, width):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def box_mask(height, width, top, left, rows, cols):
  mask = np.zeros((height, width), bool)
  mask[top : top + rows, left : left + cols] = True
  return mask


def runs_of(mask):
  """COCO's uncompressed runs: column by column, the first of pixels outside."""
  counts, value, length = [], False, 0
  for pixel in mask.T.ravel():
    if pixel != value:
      counts.append(length)
      value, length = pixel, 0
    length += 1
  return [*counts, length]


def text_of(counts):
  """COCO's compressed text of runs."""
  out = ""
  for i, count in enumerate(counts):
    x = count - (counts[i - 2] if i > 2 else 0)
    more = True
    while more:
      bits = x & 31
      x >>= 5
      more = x != (-1 if bits & 16 else 0)
      out += chr((bits | (32 if more else 0)) + 48)
  return out


def ref_seg_rs(folder):
  """Three splits; grey masks; ID 2's mask holds two objects."""
  (folder / "images").mkdir(parents=True)
  (folder / "masks").mkdir()
  masks = {}
  for number in range(1, 5):
    mask = box_mask(32, 32, 4, 4, 8, 8)
    if number == 2:
      mask |= box_mask(32, 32, 20, 16, 6, 12)
    masks[str(number)] = mask
    # Grey, as masks that were scaled or compressed are: 50 and below is ground.
    grey = np.where(mask, 51 + number, 50).astype(np.uint8)
    Image.fromarray(grey).save(folder / "masks" / f"{number}.tif")
    Image.fromarray(picture(number, 32, 32)).save(folder / "images" / f"{number}.tif")
  lines = {
    "train": ["1 vehicle on the road", "2 all buildings along the road", "", "1 a car"],
    "val": ["3 the van"],
    "test": ["4 the impervious surface"],
  }
  for split, texts in lines.items():
    (folder / f"output_phrase_{split}.txt").write_text("\n".join(texts) + "\n")
  return masks


def rrsis_d(folder, change=lambda refs, instances: None):
  """Six refs over four pictures; compressed, listed and flipped runs.

  Args:
    folder: of the data set.
    change: edits refs and instances before they are written.
  """
  (folder / "rrsisd").mkdir(parents=True)
  pictures = folder / "images" / "rrsisd" / "JPEGImages"
  pictures.mkdir(parents=True)
  images, annotations, refs, masks = [], [], [], {}
  for number in range(4):
    name = f"{number:05d}.jpg"
    Image.fromarray(picture(number, 40, 24)).save(pictures / name)
    images.append({"id": number, "file_name": name, "height": 40, "width": 24})
  for number in range(6):
    top, left = 3 + number, 2 + number
    mask = box_mask(40, 24, top, left, 9, 7)
    masks[number] = mask
    counts = runs_of(~mask if number == 5 else mask)  # 5: made of a grey mask
    form = [
      {"size": [40, 24], "counts": text_of(counts)}, {"size": [40, 24], "counts": counts},
      [{"size": [40, 24], "counts": text_of(counts)}],
    ][number % 3]  # fmt: skip
    annotations.append({
      "id": 100 + number, "image_id": number % 4, "category_id": number % 2,
      "bbox": [left, top, 7, 9], "segmentation": form, "area": 63,
    })  # fmt: skip
    sentence = {"tokens": ["the"], "raw": "The X.", "sent_id": number, "sent": ""}
    kind = ("ship", "storage tank")[number % 2]
    sentence["sent"] = f"the {kind} on the lower right"
    refs.append({
      "image_id": number % 4, "split": ("train", "train", "train", "val", "test", "train")[number],
      "sentences": [sentence], "file_name": f"{number % 4:05d}.jpg", "category_id": number % 2,
      "ann_id": 100 + number, "sent_ids": [number], "ref_id": number,
    })  # fmt: skip
  categories = [{"id": 0, "name": "ship"}, {"id": 1, "name": "storage tank"}]
  instances = {"images": images, "annotations": annotations, "categories": categories}
  change(refs, instances)
  (folder / "rrsisd" / "instances.json").write_text(json.dumps(instances))
  (folder / "rrsisd" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
  return masks
