"""An HTML page in one file: no script, nothing from outside, every text escaped."""

import base64
import html
import re
from collections.abc import Sequence

# No script, and nothing from the network: the page is safe to open wherever it came from.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --line: #8885; --quiet: #778; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; margin: 1rem 0; } figure { margin: 1rem 0; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; } td.words { white-space: normal; min-width: 22rem; }
img { max-width: 100%; background: #fff; } figcaption, .quiet { color: var(--quiet); }
article { margin: 1.5rem 0; } .hit { font-weight: 600; }
@media print { article, figure { break-inside: avoid; } }
"""


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
  """A whole page.

  Args:
    title: plain text.
    sections: (heading in plain text, HTML that functions of this module made).
  """
  links = "".join(
    f'<li><a href="#s{n}">{escaped(heading)}</a></li>' for n, (heading, _) in enumerate(sections)
  )
  body = "".join(
    f'<section><h2 id="s{n}">{escaped(heading)}</h2>\n{content}</section>\n'
    for n, (heading, content) in enumerate(sections)
  )
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{html.escape(_POLICY)}">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{escaped(title)}</title><style>{_STYLE}</style></head>\n"
    f"<body><h1>{escaped(title)}</h1><nav><ul>{links}</ul></nav>\n{body}</body></html>\n"
  )


def escaped(text: str) -> str:
  """A text that is shown as it is, whatever it holds; what no page may hold becomes a mark."""
  # Control characters are not allowed in HTML, escaped or not.
  shown = "".join(
    c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
  )
  return html.escape(shown)


def paragraph(text: str, quiet: bool = False) -> str:
  """A paragraph of plain text."""
  return f"<p{' class=quiet' if quiet else ''}>{escaped(text)}</p>\n"


def table(rows: Sequence[Sequence[str]], words: Sequence[int] = ()) -> str:
  """A table of plain texts, the first row its header. `words` are columns that may break lines."""
  head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in rows[0])
  body = []
  for row in rows[1:]:
    cells = (
      f"<td{' class=words' if column in words else ''}>{_bold(cell)}</td>"
      for column, cell in enumerate(row)
    )
    body.append(f"<tr>{''.join(cells)}</tr>\n")
  return (
    f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
    f"<tbody>{''.join(body)}</tbody></table></div>\n"
  )


def picture(png: bytes, says: str) -> str:
  """A PNG within the page, with what it shows in words."""
  data = base64.b64encode(png).decode("ascii")
  words = escaped(says)
  return (
    f'<figure><img alt="{words}" src="data:image/png;base64,{data}">'
    f"<figcaption>{words}</figcaption></figure>\n"
  )


def of_markdown(text: str) -> str:
  """Of a table printed by this library: its tables, and the lines between them as paragraphs."""
  parts = []
  rows: list[list[str]] = []
  # An empty line at the end closes a table that stands last.
  for line in [*text.splitlines(), ""]:
    if line.startswith("|"):
      # The row of dashes below a table's header is no row of its own.
      if set(line) - set("|-"):
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
      continue
    if rows:
      parts.append(table(rows))
      rows = []
    if line.strip():
      parts.append(f"<p>{_bold(line.strip())}</p>\n")
  return "".join(parts)


def _bold(text: str) -> str:
  """Escapes a text, then makes what stands between double asterisks bold."""
  # Escaped first: what is made bold cannot become markup.
  return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped(text))
