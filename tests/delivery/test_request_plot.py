"""The picture of a request names its history, its prefixes, its ads and those that were taken."""

import numpy as np
import pytest

from gr4ad_jax.answering.recommender import Recommendation
from gr4ad_jax.delivery import request_plot
from tests.evaluation.drawn import drawn_axes


def _ad(name, codes, log_p, ecpm):
  return Recommendation(name, f"the {name}", "shop", log_p, log_p, ecpm, codes)


# Two ads share a prefix; a third prefix of level 1 leads to no ad of the list.
_TREE = (
  (
    {"codes": [1], "log_p": np.log(0.5), "beams": 2},
    {"codes": [0], "log_p": np.log(0.3), "beams": 1},
    {"codes": [2], "log_p": np.log(0.01), "beams": 1},
  ),
  (
    {"codes": [1, 4], "log_p": np.log(0.26), "beams": 1},
    {"codes": [0, 3], "log_p": np.log(0.25), "beams": 1},
    {"codes": [1, 5], "log_p": np.log(0.2), "beams": 1},
    {"codes": [2, 6], "log_p": np.log(0.01), "beams": 1},
  ),
)
_ADS = [
  _ad("mug", (1, 4), np.log(0.26), 3.0),
  _ad("tea", (0, 3), np.log(0.25), 7.5),
  _ad("pen", (1, 5), -1.6, 1.25),
]
_REQUEST = request_plot.DrawnRequest("ann", ["lamp", "book"], _ADS, _TREE, frozenset(["tea"]))


def test_the_picture_tells_the_request(monkeypatch):
  tree, bars = drawn_axes(monkeypatch, lambda: request_plot.plot_request(_REQUEST, "x.png"))
  said = [text.get_text() for text in tree.texts]
  assert tree.get_title(loc="left") == "ann; 4 beams"
  assert {"lamp", "book", "the mug", "★ the tea", "the pen"} <= set(said)
  assert {"1  p .5", "0  p .3", "4  p .26", "3  p .25", "5  p .2"} <= set(said)
  assert {"level 1\n3 prefixes", "level 2\n4 prefixes"} <= set(said)
  place = {text.get_text(): text.get_position() for text in tree.texts}
  assert (
    place["the mug"][1] < place["★ the tea"][1] < place["the pen"][1]
  )  # by rank; the axis points down
  assert (
    place["4  p .26"][1] < place["3  p .25"][1] < place["5  p .2"][1]
  )  # so no line of these crosses another
  assert [bar.get_width() for bar in bars.patches] == [3.0, 7.5, 1.25]
  assert [text.get_text() for text in bars.texts] == ["3.00", "7.50", "1.25"]
  colors = [bar.get_facecolor() for bar in bars.patches]
  assert colors[0] == colors[2] != colors[1]  # the one that was taken


def test_nothing_to_draw_is_refused():
  empty = request_plot.DrawnRequest("ann", [], [], _TREE, frozenset())
  with pytest.raises(ValueError, match="no ad to draw"):
    request_plot.plot_request(empty, "x.png")
