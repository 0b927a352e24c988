"""The page in headless Chromium, over a fake engine: ads and their beams, the charts, the
keyboard, what goes wrong.
"""

import html.parser
import math
import pathlib
import re
import time

import pytest

from gr4ad_jax.answering.messages import Answer
from gr4ad_jax.engine.batcher import Overloaded
from tests.serving.browser import Visit, chromium, served
from tests.serving.fakes import FakeEngine

_PAGE = pathlib.Path(__file__).parents[2] / "gr4ad_jax" / "serving" / "page.html"
_TEXT = _PAGE.read_text(encoding="utf-8")


class PagedEngine(FakeEngine):
  """Twelve ads below four prefixes; one ad's text is markup. `popular`: answers are the fallback
  list. `reasons`: sentences of the first ads.
  """

  def __init__(self):
    super().__init__()
    self.popular = False
    self.reasons = []
    for n, ad in enumerate(self.ads.values()):
      ad["codes"] = [n % 2, n % 4, n]
    self.ads["ad3"]["text"] = "<img src=x onerror=document.title='run'>"
    self.histories["a/b?c#d"] = [self._event("ad1")]
    self.histories["nobody"] = []

  async def recommend_async(self, query):
    """The first k ads; ad n has the share 1 / 2ⁿ⁺¹, and its prefixes what their ads have
    together.
    """
    plain = await super().recommend_async(query)
    share = {tuple(ad["codes"]): 2.0 ** -(n + 1) for n, ad in enumerate(self.ads.values())}
    tree = []
    for depth in (1, 2, 3):
      below = {codes[:depth]: [c for c in share if c[:depth] == codes[:depth]] for codes in share}
      ecpm = 2.0 if depth == 3 else None
      tree.append(
        tuple(
          {
            "codes": list(codes),
            "log_p": math.log(sum(share[c] for c in found)),
            "beams": len(found),
            "ecpm": ecpm,
          }
          for codes, found in below.items()
        )
      )
    ads = tuple(ad | {"log_p": math.log(share[tuple(ad["codes"])])} for ad in plain.ads)
    why = [{"reasons": {"sentence": sentence}} for sentence in self.reasons]
    first = tuple(ad | reasons for ad, reasons in zip(ads, why, strict=False))
    ads = (*first, *ads[len(first) :])
    return (
      Answer("fallback", 7, (), ads)
      if self.popular
      else Answer("model", 7, (8, 8, 8), ads, tuple(tree))
    )

  def stats(self):
    """Ten seconds up to now."""
    told = super().stats()
    return told | {
      "points": [told["points"][0] | {"time": int(time.time()) - 10 + n} for n in range(10)]
    }


@pytest.fixture(scope="module")
def driver():
  with chromium() as driver:
    yield driver


@pytest.fixture
def engine():
  return PagedEngine()


@pytest.fixture
def visit(driver, engine):
  with served(engine) as address:
    yield Visit(driver, address)


def test_a_customer_gets_ads_and_their_beams(visit, engine):
  visit.pick("u2")
  assert len(visit.all("#history li")) == len(engine.histories["u2"])
  visit.ask()
  rows, ads = visit.all("#ads tr[data-key]"), list(engine.ads.values())
  order = [*range(3, 10), 0, 1, 2]  # what is new stands first, each with its place in the list
  assert len(rows) == 10
  for n, row in zip(order, rows, strict=True):
    assert ads[n]["text"] in row and row.split()[0] == str(n + 1)
  assert ["in the history" in row for row in rows] == [False] * 7 + [True] * 3
  assert visit.all("#ads tr.group") == ["New to the customer · 7 ads", "Taken before · 3 ads"]
  assert visit.all("#ads .bar") and visit.all("#ads td.number")[:3] == ["6.25%", "0.00", "2.00"]
  assert (engine.queries[0].user, engine.queries[0].explain, engine.queries[0].cache) == (
    "u2",
    True,
    True,
  )
  assert "checkpoint 7 · beams 8-8-8" in visit.all("#facts")[0]
  assert visit.complaints() == []
  assert visit.hosts_asked() == {visit.address.removeprefix("http://")}


def test_the_first_ads_tell_their_reasons(visit, engine):
  visit.pick("u2")
  visit.ask()
  assert engine.queries[0].explain and visit.all("#ads .why") == []  # still compiled for
  engine.reasons = ["Often taken with <b>mugs</b>.", "Bought once."]
  visit.find("#recommend").click()
  visit.wait("#ads .why", "mugs")
  assert sorted(visit.all("#ads .why")) == ["Bought once.", "Often taken with <b>mugs</b>."]
  rows = [row for row in visit.all("#ads tr[data-key]") if "taken with" in row]
  assert len(rows) == 1 and "thing 0" in rows[0]  # in the row of its ad, and as text


def test_new_ads_alone_can_be_asked_for(visit, engine):
  visit.pick("u2")
  visit.find("#fresh").click()
  visit.ask()
  assert engine.queries[0].seen_ads == "masked"
  assert visit.all("#ads tr.group") == ["New to the customer · 9 ads"]


def test_the_tree_multiplies_up_and_no_edges_cross(visit):
  visit.pick("u1")
  visit.ask()
  nodes = visit.run("""
    return [...document.querySelectorAll("#tree .node")].map((node) => {
      const box = node.getBoundingClientRect(), key = node.dataset.key;
      const part = (kind) => document.querySelector(`#tree .${kind}[data-key="${key}"]`);
      const find = (kind) => part(kind)?.innerText ?? "";
      return {key, x: box.x, y: box.y + box.height / 2, edge: find("edge"), leaf: find("leaf")};
    })""")
  by_key = {node["key"]: node for node in nodes}
  assert sum(bool(node["leaf"]) for node in nodes) == 12 and len(nodes) == 1 + 2 + 4 + 12
  for node in filter(lambda node: node["leaf"], nodes):
    codes = node["key"].split("-")
    path = [by_key["-".join(codes[: depth + 1])] for depth in range(3)]
    product = math.prod(float(step["edge"].rstrip("%")) / 100 for step in path)
    assert product == pytest.approx(2.0 ** -(int(codes[-1]) + 1), rel=0.02)
  for depth in range(3):  # a level's nodes, from top to bottom, have parents from top to bottom
    level = sorted(
      (n for n in nodes if n["key"].count("-") == depth and n["key"]), key=lambda n: n["y"]
    )
    parents = [by_key[node["key"].rpartition("-")[0]]["y"] for node in level]
    assert parents == sorted(parents) and len({round(node["y"]) for node in level}) == len(level)
  assert sorted(visit.all("#tree .leaf"))[:2] == [
    "1. thing 0\n50.0% · eCPM 2.00",
    "10. thing 9\n0.098% · eCPM 2.00",
  ]
  assert len([leaf for leaf in visit.all("#tree .leaf") if leaf.startswith("not in the list")]) == 2
  assert visit.all("#tree .level") == [
    "Level 1\n2 of 8 survive",
    "Level 2\n4 of 8 survive",
    "Level 3\n12 of 12 drawn",
  ]
  visit.find("summary").click()
  assert len(visit.all("#beams tbody tr")) == 12


def test_text_is_never_markup(visit, engine):
  visit.pick("u0")
  visit.find("#recommend").click()
  assert engine.ads["ad3"]["text"] in visit.wait("#ads tr[data-key]", "<img")
  assert visit.run("return document.querySelectorAll('img').length") == 0
  assert visit.driver.title == "GR4AD beam server"


def test_the_charts_follow_the_server(visit, engine):
  visit.wait("#status", "Ready · checkpoint 7 · 12 ads · beams 8-8-8")
  assert visit.wait("#charts figure:first-child", "11").startswith("Latency")
  assert len(visit.driver.find_elements("css selector", "#charts path.line")) == 8
  assert "target 100 ms" in visit.wait("#charts text.target")
  labels = [
    svg.get_attribute("aria-label")
    for svg in visit.driver.find_elements("css selector", "#charts svg")
  ]
  assert labels[0] == "Latency of the last 10 minutes; latest: p50 11, p99 20.5 ms; target 100 ms"
  assert labels[5] == "Events of the last 10 minutes; latest: 3 events/s"
  assert labels[4] == "Cache hits of the last 10 minutes; latest: 25 % of answers"
  engine.stats = lambda: PagedEngine.stats(engine) | {"checkpoint": 8}
  visit.wait("#status", "checkpoint 8")


def test_the_keyboard_is_enough(visit, engine):
  visit.wait("#user-hint", "5 customers")
  visit.find("#user").send_keys("u")
  visit.wait("#users li", "u2")
  visit.wait("#user-hint", "3 customers with “u”.")
  visit.find("#user").send_keys("\ue015\ue015\ue007")  # down, down, enter
  visit.wait("#recommend:enabled")
  assert visit.find("#user").get_attribute("value") == "u1"
  visit.find("#k").clear()
  visit.find("#k").send_keys("4\ue007")
  visit.wait("#ads tr[data-key]")
  assert len(visit.all("#ads tr[data-key]")) == 4 and engine.queries[0].k == 4


def test_any_id_is_found_and_shown_again_after_a_reload(visit):
  visit.pick("a/b?c#d")
  visit.driver.refresh()
  visit.wait("#history li", "a thing")
  assert visit.find("#user").get_attribute("value") == "a/b?c#d"
  visit.find("#user").clear()
  visit.find("#user").send_keys("zzz")
  visit.wait("#user-hint", "No customer’s id begins with “zzz”.")
  visit.pick("nobody")
  visit.wait("#history", "No history: this customer has no events.")


def test_what_goes_wrong_is_said_in_words(visit, engine):
  visit.find("#user").send_keys("u9\ue007")
  visit.wait("#history [role=alert]", "The server refused: there is no such user.")
  visit.pick("u1")
  engine.raises = Overloaded("too many requests wait", 3.0)
  visit.find("#recommend").click()
  visit.wait(
    "#answer [role=alert]", "The server refused: too many requests wait. It asks to wait 3 seconds."
  )
  engine.raises, engine.popular = None, True
  visit.find("#answer button").click()
  visit.wait("#answer .warn", "could not answer in time")
  assert len(visit.all("#ads tr[data-key]")) == 10 and not visit.all("#ads .bar")
  visit.wait("#tree-place", "No beams")


def test_a_token_is_asked_for(driver, engine):
  with served(engine, "secret") as address:
    visit = Visit(driver, address)
    visit.wait("#token:not([hidden])", "This server asks for a token.")
    visit.find("#token-field").send_keys("guess\ue007")
    visit.wait("#status", "The token was not accepted.")
    visit.find("#token-field").clear()
    visit.find("#token-field").send_keys("secret\ue007")
    visit.wait("#status", "Ready")
    visit.pick("u1")
    visit.ask()
    assert len(visit.all("#ads tr[data-key]")) == 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all(visit, scheme):
  features = [{"name": "prefers-color-scheme", "value": scheme}]
  visit.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
  size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
  visit.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
  try:
    visit.pick("u2")
    visit.ask()
    assert visit.run("return document.documentElement.scrollWidth") <= 360
    assert visit.run("return document.querySelector('.scroll').scrollWidth") <= 360
    ground = visit.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) > 382) == (scheme == "light")
  finally:
    visit.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    visit.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_file_needs_nothing_from_outside():
  tags = []

  class Reader(html.parser.HTMLParser):
    def handle_starttag(self, tag, attrs):
      tags.append((tag, dict(attrs)))

  Reader().feed(_TEXT)
  plain = [(tag, names) for tag, names in tags if tag in ("script", "style")]
  assert sorted(plain) == [
    ("script", {}),
    ("style", {}),
  ]  # so that a digest of each can stand in the policy
  assert not [
    name for _, names in tags for name in names if name.startswith("on") or name == "style"
  ]
  linked = [names[name] for _, names in tags for name in ("src", "href", "action") if name in names]
  assert sorted(linked) == ["/metrics", "/openapi.json", "data:,"]
  assert re.findall(r"[a-z]+://[^\"' ]*", _TEXT) == [
    "http://www.w3.org/2000/svg"
  ]  # a name, not an address
  assert "innerHTML" not in _TEXT and "@import" not in _TEXT and "url(" not in _TEXT


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_are_told_apart(scheme):
  block = re.findall(r":root \{(.*?)\}", _TEXT, re.DOTALL)[scheme]
  colour = dict(re.findall(r"--([a-z-]+): #([0-9a-f]+);", block))

  def light(name):
    digits = (
      colour[name] if len(colour[name]) == 6 else "".join(2 * digit for digit in colour[name])
    )
    shares = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(weight * s for weight, s in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

  pairs = [
    (ink, paper)
    for ink in ("text", "quiet", "accent")
    for paper in ("surface", "ground", "sunken", "soft")
  ]
  pairs += [("bad", "bad-soft"), ("bad", "surface"), ("warn", "warn-soft"), ("second", "surface")]
  pairs += [("on-accent", "accent")]
  for ink, paper in pairs:  # WCAG 2.2, level AA: 4.5 to 1
    high, low = sorted((light(ink), light(paper)), reverse=True)
    assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, paper)


LOOP = {
  "in_use": 812, "since": None, "promoted": 5, "refused": 1, "lag": 40,
  "rewards": {"expected": 31.25, "taken": 30.0},
  "days": [
    {"day": 1_291_161_600 + 86_400 * n, "requests": 10 + 10 * n,
     "learning": {"recall": 0.3 + n / 10, "revenue": 0.2},
     "frozen": {"recall": 0.3, "revenue": 0.1}}
    for n in range(2)
  ],
}  # fmt: skip


@pytest.mark.long
def test_the_page_shows_what_is_learned(visit, engine):
  assert not visit.find("#loop").is_displayed()  # nobody learns here
  plain = engine.stats
  engine.stats = lambda: plain() | {"loop": LOOP | {"since": time.time() - 180}}
  assert visit.wait("#loop-hint", "812") == "Checkpoint 812 is in use, for 3 minutes."
  facts = visit.wait("#loop-facts", "refused")
  assert facts.startswith("5 promoted, 1 refused · the learner is 40 events behind")
  assert facts.endswith("31.3 purchases expected, 30 made")
  recall, revenue = visit.all("#days figure")
  # Means over requests: (10 * .3 + 20 * .4) / 30.
  assert "learning 0.3667" in recall and "frozen 0.3000" in recall and "1 Dec 2010" in recall
  assert "learning 0.2000" in revenue and "frozen 0.1000" in revenue
  assert len(visit.driver.find_elements("css selector", "#days path.line")) == 4
  assert visit.complaints() == []
