"""The report's HTML: nothing from outside, texts that are never markup, tables of the library's own
form; opened in a browser.
"""

import html.parser

from gr4ad_jax.reporting import page
from gr4ad_jax.reporting.customers import Customer, as_html
from tests.serving.browser import chromium

HOSTILE = '<script>document.title="x"</script> & "quoted" **bold** \x00\x1b[31m'
# A PNG of one pixel.
PNG = bytes.fromhex(
  "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63fccfc0"
  "f01f0005050201cf5c9f6e0000000049454e44ae426082"
)


class Parsed(html.parser.HTMLParser):
  """Tags with their attributes, and the texts between them."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.texts = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.texts.append(data)


def whole():
  customer = Customer(
    HOSTILE, "Before 2011-12-01: 3 visits.", (("1", HOSTILE, "**taken**", "3%", "2.00", "Why."),),
    HOSTILE,
  )  # fmt: skip
  markdown = (
    f"Two systems. Best in **bold**.\n\n| system | recall |\n|---|---|\n| {HOSTILE} | .5 |\n"
  )
  return page.page(
    f"Run {HOSTILE}",
    [
      ("Tables", page.of_markdown(markdown)),
      ("Charts", page.picture(PNG, HOSTILE)),
      ("Customers", as_html([customer])),
    ],
  )


def test_texts_are_never_markup_and_nothing_is_loaded():
  made = Parsed(whole())
  names = [tag for tag, _ in made.tags]
  assert "script" not in names and "link" not in names and "iframe" not in names
  for _, attrs in made.tags:
    assert not [name for name in attrs if name.startswith("on")]
    for name in ("src", "href"):
      assert attrs.get(name, "#").startswith(("data:image/png;base64,", "#"))
  text = "".join(made.texts)
  # In title, heading, two cells, caption, customer and what was taken: as it came, but for control
  # characters.
  assert text.count('<script>document.title="x"</script> & "quoted"') == 7
  assert "\x00" not in text and "\x1b" not in text
  (policy,) = [attrs for tag, attrs in made.tags if attrs.get("http-equiv")]
  assert policy["content"].startswith("default-src 'none'; img-src data:")


def test_tables_and_paragraphs_of_the_printed_form():
  made = Parsed(page.of_markdown("Words.\n\n| a | b |\n|---|---|\n| **1** | 2 |\n\nMore.\n"))
  assert [tag for tag, _ in made.tags] == [
    "p", "div", "table", "thead", "tr", "th", "th", "tbody", "tr", "td", "strong", "td", "p",
  ]  # fmt: skip
  assert [text for text in map(str.strip, made.texts) if text] == ["Words.", "a", "b", "1", "2",
                                                                  "More."]  # fmt: skip


def test_a_browser_shows_it(tmp_path):
  path = tmp_path / "report.html"
  path.write_text(whole(), encoding="utf-8")
  with chromium() as driver:
    driver.get(f"file://{path}")
    assert driver.title.startswith("Run <script>")
    assert [e.text for e in driver.find_elements("css selector", "h2")] == [
      "Tables", "Charts", "Customers",
    ]  # fmt: skip
    assert driver.execute_script("return document.images[0].naturalWidth") == 1
    assert driver.find_elements("css selector", "td strong")[-1].text == "taken"
    wide = driver.execute_script(
      "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )
    assert wide  # tables scroll within themselves
    complaints = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert complaints == []
