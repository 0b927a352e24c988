"""The whole of BTDNet: switches, what a pass reads, what is differentiated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.btdnet import sizes
from gr4ad_jax.btdnet.bert import BertSize
from gr4ad_jax.btdnet.layers import coordinates
from gr4ad_jax.btdnet.model import MEAN, STD, BTDNet, Parts, normalized, target_logit
from gr4ad_jax.btdnet.object_learning import Hidden
from gr4ad_jax.btdnet.swin import SwinSize
from gr4ad_jax.scenes.sections import SegmentationConfig
from tests.btdnet import reference
from tests.btdnet.build import applied, assert_close, drawn

VISION = SwinSize(8, (1, 2), (2, 2), 4, coordinates=True)
TEXT = BertSize(vocab=20, width=8, layers=1, heads=2, hidden=12, positions=6)


def inputs():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (2, 24, 16, 3)).astype(np.uint8)
  mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
  return image, rng.integers(0, 20, (2, 5)), mask


def model(**parts):
  return BTDNet(VISION, TEXT, dataclasses.replace(Parts(decoder_width=4), **parts))


def hidden(tokens):
  dropped = np.zeros((2, 3, 2), bool)
  dropped[:, 1] = True
  return Hidden(jnp.asarray(np.where(tokens == tokens[0, 2], 1, tokens)), jnp.asarray(dropped))


def test_images_are_normalised_as_imagenet_is():
  image = np.array([[[[0, 128, 255]]]], np.uint8)
  theirs = (np.array([0, 128, 255]) / 255 - MEAN) / STD
  assert_close(normalized(jnp.asarray(image))[0, 0, 0], theirs)


def test_the_target_is_where_its_part_of_the_softmax_is_larger():
  logits = np.random.default_rng(0).normal(size=(2, 3, 4, 2))
  share = np.exp(logits[..., 1]) / np.exp(logits).sum(-1)
  np.testing.assert_array_equal(target_logit(logits) > 0, share > 0.5)
  assert_close(1 / (1 + np.exp(-target_logit(logits))), share)


@pytest.mark.parametrize(
  ("parts", "has", "lacks"),
  [
    ({"bsc": "off", "decoder": "single"}, "decoder/level_0", "to_words"),
    ({"bsc": "words", "decoder": "shared"}, "to_words_0", "background_level_0"),
    ({"bsc": "vision", "decoder": "twin"}, "background_level_0", "to_words"),
    ({"bsc": "both", "dmols": "text"}, "text_rebuilder", "vision_rebuilder"),
    ({"dmols": "vision"}, "vision_rebuilder", "text_rebuilder"),
  ],
)
def test_each_part_has_parameters_where_it_is_switched_on(parts, has, lacks):
  image, tokens, mask = inputs()
  params = drawn(model(**parts), image, tokens, mask, hidden=hidden(tokens))
  paths = ["/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(params)]
  assert any(path.startswith(has) or f"/{has}" in path for path in paths)
  assert not any(lacks in path for path in paths)


def test_a_pass_rebuilds_only_what_was_asked_for_and_the_mask_does_not_change():
  image, tokens, mask = inputs()
  module = model(dmols="both")
  params = drawn(module, image, tokens, mask, hidden=hidden(tokens))
  plain = applied(module, params, image, tokens, mask)
  learning = applied(module, params, image, tokens, mask, hidden=hidden(tokens))
  assert plain.rebuilt_text_BNE is None and plain.rebuilt_map_BHWC is None
  assert learning.rebuilt_text_BNE.shape == (2, 5, 8)
  assert learning.rebuilt_map_BHWC.shape == learning.deepest_BHWC.shape == (2, 3, 2, 16)
  assert plain.logits_BHW2.shape == (2, 24, 16, 2)
  assert_close(learning.logits_BHW2, plain.logits_BHW2)


def _by_loops(params, image, tokens, mask, parts):
  """The whole forward of one image, put together from `reference`."""
  x = (image / 255 - np.array(MEAN)) / np.array(STD)
  x = np.pad(x, ((0, -len(x) % 4), (0, -x.shape[1] % 4), (0, 0)))
  x = reference.conv(params["stem"]["projection"], x, 4, 0)
  x = reference.layer_norm(params["stem"]["norm"], x)
  x = x + reference.linear(params["stem"]["place"], coordinates(*x.shape[:2]))
  words = reference.bert(params["encoder"], tokens, mask, TEXT.layers, TEXT.heads)
  maps = []
  for i, depth in enumerate(VISION.depths):
    if i:
      x = reference.patch_merging(params[f"merges_{i - 1}"], x)
    for j in range(depth):
      block = params[f"stages_{i}"][f"block_{j}"]
      x = reference.swin_block(block, x, VISION.heads[i], VISION.window, bool(j % 2))
    H, W, C = x.shape
    seen = x
    pair = reference.gated_fusion(
      params[f"fusions_{i}"],
      x.reshape(H * W, C),
      words,
      mask,
      parts.bsc in ("vision", "both"),
      False,
    )
    x, out = (part.reshape(H, W, C) for part in pair)
    maps.append(out)
    if parts.bsc in ("words", "both") and i + 1 < len(VISION.depths):
      words = reference.vision_to_words(params[f"to_words_{i}"], words, seen)
  height, width = image.shape[:2]
  return reference.twin_decoder(
    params["decoder"], maps, height, width, parts.subpixel, parts.decoder == "shared"
  )[0]


@pytest.mark.parametrize(
  ("bsc", "decoder"),
  [("both", "twin"), pytest.param("words", "shared", marks=pytest.mark.long)],
)
def test_the_whole_forward_equals_loops(bsc, decoder):
  image, tokens, mask = inputs()
  module = model(bsc=bsc, decoder=decoder)
  params = drawn(module, image, tokens, mask, spread=0.3)
  ours = applied(module, params, image, tokens, mask).logits_BHW2
  for b in range(2):
    assert_close(ours[b], _by_loops(params, image[b], tokens[b], mask[b], module.parts))


@pytest.mark.parametrize("bsc", [pytest.param("off", marks=pytest.mark.long), "both"])
def test_the_mask_reads_the_sentence_and_no_padding(bsc):
  image, tokens, mask = inputs()
  module = model(bsc=bsc)
  params = drawn(module, image, tokens, mask)
  before = applied(module, params, image, tokens, mask).logits_BHW2
  other = tokens.copy()
  other[1, 3:] = (other[1, 3:] + 7) % 20
  after = applied(module, params, image, other, mask).logits_BHW2
  np.testing.assert_array_equal(before, after)
  other[1, 1] = (other[1, 1] + 1) % 20
  after = applied(module, params, image, other, mask).logits_BHW2
  assert np.abs(before[1] - after[1]).max() > 1e-3
  np.testing.assert_array_equal(before[0], after[0])


@pytest.mark.long
@pytest.mark.parametrize("remat", [pytest.param("dots", marks=pytest.mark.long), "full"])
def test_what_is_computed_again_changes_no_gradient(remat):
  image, tokens, mask = inputs()
  module = model()
  params = drawn(module, image, tokens, mask, spread=0.2)

  def total(module, params):
    out = module.apply({"params": params}, image, tokens, mask, train=True)
    return jnp.mean(jnp.sin(out.logits_BHW2))

  found = [
    jax.jit(jax.grad(total, argnums=1), static_argnums=0)(one, params)
    for one in (module, dataclasses.replace(module, remat=remat))
  ]
  for one, other in zip(*map(jax.tree.leaves, found), strict=True):
    assert_close(one, np.asarray(other))


@pytest.mark.parametrize(
  ("swin", "bert", "millions"),
  [
    ("T", "mini", (27.5, 22.6)),
    pytest.param("B", "base", (86.9, 108.9), marks=pytest.mark.long),
  ],
)
def test_published_sizes_have_as_many_parameters(swin, bert, millions):
  """Of the towers alone: Swin without its last norm and head, BERT without its pooler."""
  own = SegmentationConfig(
    swin=swin, bert=bert, stem="patch", coordinates=False, image_size=224,
    swin_window={"T": 7, "B": 12}[swin],
  )  # fmt: skip
  if swin == "B":
    own = dataclasses.replace(own, image_size=384)
  module = sizes.make(own, 30522)
  image = jax.ShapeDtypeStruct((1, own.image_size, own.image_size, 3), jnp.uint8)
  tokens = jax.ShapeDtypeStruct((1, 20), jnp.int32)
  shapes = jax.eval_shape(
    lambda i, t: module.init(jax.random.key(0), i, t, t > 0)["params"], image, tokens
  )
  count = {"vision": 0, "text": 0}
  for path, leaf in jax.tree.leaves_with_path(shapes):
    top = path[0].key
    side = "text" if top == "encoder" else "vision"
    if top == "encoder" or top.startswith(("stem", "stages", "merges")):
      count[side] += leaf.size
  found = [count["vision"] / 1e6, count["text"] / 1e6]
  np.testing.assert_allclose(found, millions, atol=0.11)
