"""Texts of unknown origin in a terminal: harmless, cut to the columns that there are, and told
apart.
"""

import io
import sys

import numpy as np
import pytest

from gr4ad_jax.answering import printed
from gr4ad_jax.answering.recommender import Recommendation
from gr4ad_jax.data.schema import AdTable, Dataset
from gr4ad_jax.decoding.ranker import Ranking
from gr4ad_jax.delivery import examples
from tests.features.logs import make_log


@pytest.mark.parametrize("text,shown", [
  ("green tea", "green tea"), ("\x1b[31mred\x07", r"\x1b[31mred\x07"), ("a\nb\tc\r", r"a\nb\tc\r"),
  ("\x9b2J", r"\x9b2J"), ("\u202eabc", r"\u202eabc"), ("a\u00a0b\u2003c", "a b c"),
  ("日本é", "日本é"),
  ("\u200d\u200c", "\u200d\u200c"), ("\u2028", r"\u2028"), ("\U000e0001", r"\U000e0001"), ("", ""),
])  # fmt: skip
def test_what_a_terminal_may_obey_is_escaped(text, shown):
  assert printed.plain(text) == shown
  assert printed.plain(text, 80) == shown


@pytest.mark.parametrize("text,width,shown", [
  ("abcdef", 6, "abcdef"), ("abcdefg", 6, "abcde…"), ("日本語", 6, "日本語"),
  ("日本語", 5, "日本…"),
  ("日本語", 4, "日…"), ("e\u0301" * 6, 6, "e\u0301" * 6), ("e\u0301" * 7, 6, "e\u0301" * 5 + "…"),
  ("\x1b\x1b", 6, r"\x1b\…"), ("ab", 1, "…"), ("x" * 48_000, 10, "xxxxxxxxx…"),
])  # fmt: skip
def test_texts_are_cut_to_columns(text, width, shown):
  assert printed.plain(text, width) == shown
  assert printed.columns(shown) <= width


def test_an_output_that_lacks_letters_gets_escapes(monkeypatch):
  monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
  print(printed.plain("thé"), printed.plain("y" * 9, 4))
  sys.stdout.seek(0)
  assert sys.stdout.read() == "th\\xe9 yyy?\n"


def test_an_ad_without_a_text_has_its_id():
  assert printed.ad_name("85123A", "") == "85123A"
  assert printed.ad_name("85123A", "white heart") == "85123A white heart"
  assert printed.ad_name("a\x1b", "", 3) == r"a\…"


def test_the_terminal_says_how_wide_it_is(monkeypatch):
  monkeypatch.setenv("COLUMNS", "77")
  assert printed.terminal_width() == 77


def test_a_list_is_as_wide_as_it_may_be():
  found = [
    Recommendation("tea", "green\x1b tea " * 900, "shop", -0.75, -0.5, 3.25, (0, 1)),
    Recommendation("日本" * 50, "", "shop", -2.5, -1.25, 0.5, (0, 2), True),
  ]
  lines = printed.ranked_list(found, 70).splitlines()
  assert max(map(printed.columns, lines)) == 70
  assert lines[1] == "new to the user" and lines[3] == "taken before"
  _, _, first, _, second = lines
  assert (first[:9], second[:9]) == ("  1  tea ", "  2  日本日本")
  assert r"green\x1b …" in first and " -0.750  -0.500     3.25  " in first
  start = printed.columns(first[: first.index("-0.500")])
  assert printed.columns(second[: second.index("-1.250")]) == start
  narrow = printed.ranked_list(found[:1], 1).splitlines()
  assert narrow[2].endswith("…")  # a narrow terminal: something of each
  assert printed.ranked_list(
    [Recommendation("t", "tea", "shop", -0.75, -0.5, 3.25, (0, 1))], 70
  ).splitlines() == [
    "     ad_id   log p   score     eCPM  text",
    "new to the user",
    "  1  t      -0.750  -0.500     3.25  tea",
  ]


def test_what_is_new_stands_apart_with_its_rank():
  seen = (True, False, True, False)
  found = [
    Recommendation(f"ad{n}", "", "", -1.0, -1.0, 1.0, (0, n), again) for n, again in enumerate(seen)
  ]
  lines = [line[:9].split() for line in printed.ranked_list(found, 60).splitlines()[1:]]
  assert lines == [["new", "to", "th"], ["2", "ad1"], ["4", "ad3"], ["taken", "bef"],
                   ["1", "ad0"], ["3", "ad2"]]  # fmt: skip


def test_customers_are_described_in_lines_of_that_width():
  log = make_log(users=6)
  blank = np.full(9, "", object)
  text = blank.copy()
  text[0] = "\x1b[31m" + "long " * 10_000
  ads = AdTable(
    ad_id=np.array([f"id{n}" for n in range(9)], object),
    text=text,
    account_id=blank,
    category=blank,
    conversion_type=blank,
    form=blank,
    price=np.zeros(9),
    created=np.zeros(9),
  )
  count = int((np.bincount(log.user[log.split == 2]) > 0).sum())
  ranking = Ranking(
    ad_RK=np.tile(np.array([0, 1, 2, 3, -1, 4]), (count, 1)),
    logp_RK=np.log(np.full((count, 6), 0.25)), value_RK=np.full((count, 6), 2.5),
    score_RK=np.zeros((count, 6)),
  )  # fmt: skip
  dataset = Dataset("made", ads, log, ("click", "cart", "purchase"))
  shown = examples.describe(dataset, ranking, width=64)
  assert "\x1b" not in shown and max(map(printed.columns, shown.splitlines())) <= 64
  lines = [line for line in shown.splitlines() if line.startswith(("  *", "    "))]
  assert len(lines) == 3 * 4
  assert (
    lines[0].split()[-4:] == ["(p", "0.250,", "eCPM", "2.50)"] and r"id0 \x1b[31mlong" in lines[0]
  )
  assert [line[10:].split()[0] for line in lines[1:4]] == ["id1", "id2", "id3"]
  assert sum(line.startswith("  lately: id") for line in shown.splitlines()) == 3
