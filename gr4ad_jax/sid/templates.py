"""How an ad's fields become the text that is encoded: one template per ad form (method.md §1.1)."""

import string
from collections.abc import Mapping

import numpy as np

from gr4ad_jax.data import schema

TEMPLATES: dict[str, tuple[str, ...]] = {
  "live_stream": ("Live stream by {account_id}", "{text}", "about {category}"),
  "off_site": ("{text}", "industry {category}", "advertiser {account_id}", "goal {conversion_type}"),
  "virtual_product": ("Virtual product", "{text}", "genre {category}", "value {price:.2f}"),
  "product": ("{text}", "product of {category}", "price {price:.2f}"),
  "short_video": ("Short video", "{text}", "topic {category}", "creator {account_id}"),
  "local_service": ("Local service", "{text}", "trade {category}", "from {price:.2f}"),
}
DEFAULT = ("{text}", "{category}")  # of ads without a form

FIELDS = ("text", "account_id", "category", "conversion_type", "price")


def verbalise(ads: schema.AdTable, templates: Mapping[str, tuple[str, ...]] = TEMPLATES) -> list[str]:
  """The text of each ad: its form's clauses, less those that name an unknown field.

  A template is a tuple of format strings over the fields text, account_id, category, conversion_type and price; the
  clauses are joined by ". ". Another form is one more entry: `{**TEMPLATES, "podcast": ("{text}", "on {category}")}`.

  Args:
    ads: N ads; the form "" takes `DEFAULT`, which leaves plain text as it is.
    templates: form -> clauses.

  Returns:
    N strings, "" where nothing is known of an ad.

  Raises:
    schema.DataError: an ad's form has no template, or a template names a field that ads lack.
  """
  forms = np.unique(ads.form)
  for form in forms:
    if form and form not in templates:
      row = int(np.flatnonzero(ads.form == form)[0])
      known = ", ".join(sorted(templates))
      raise schema.DataError(f"ads.form, row {row} (ad {ads.ad_id[row]}): {str(form)!r} is not in {known}, nor empty")
  clauses = {str(form): [(c, _fields(c, str(form))) for c in (templates[form] if form else DEFAULT)] for form in forms}
  columns = {field: getattr(ads, field) for field in FIELDS}
  texts = []
  for row, form in enumerate(ads.form):
    values = {field: column[row] for field, column in columns.items()}
    known = {field: v for field, v in values.items() if (np.isfinite(v) if field == "price" else v != "")}
    texts.append(". ".join(c.format(**known) for c, fields in clauses[str(form)] if fields <= known.keys()))
  return texts


def _fields(clause: str, form: str) -> set[str]:
  """Names of the fields of a clause, checked."""
  names = {name for _, name, _, _ in string.Formatter().parse(clause) if name is not None}
  if names - set(FIELDS):
    unknown = ", ".join(sorted(names - set(FIELDS)))
    raise schema.DataError(f"template {form!r}: unknown field {unknown} in {clause!r}; fields are {', '.join(FIELDS)}")
  return names
