"""How an ad's fields become the text that is encoded: one template per ad form
(docs/design/method.md §1.1).
"""

import string
from collections.abc import Mapping

import numpy as np

from gr4ad_jax.data import schema
from gr4ad_jax.data.forms import DEFAULT, FIELDS, TEMPLATES


def verbalise(
  ads: schema.AdTable, templates: Mapping[str, tuple[str, ...]] = TEMPLATES
) -> list[str]:
  """The text of each ad: its form's clauses, less those that name an unknown field.

  A template is a tuple of clauses: format strings over the fields text, account_id, category,
  conversion_type and price. The clauses are joined by ". ". Another form is one more entry,
  `TEMPLATES["podcast"] = ("{text}", "on {category}")`, in `data/forms.py`. The `form` column is
  checked against that table when a file is read. A table of one's own may be given instead.

  Args:
    ads: N ads. The form "" takes `DEFAULT`, which leaves plain text as it is.
    templates: form -> clauses.

  Returns:
    N strings, "" where nothing is known of an ad.

  Raises:
    schema.DataError: an ad's form has no template (rows are counted from 1), or a template names a
      field that ads lack.
  """
  # Templates are looked at once a form, not once an ad.
  forms = np.unique(ads.form)
  for form in forms:
    if form and form not in templates:
      row = int(np.flatnonzero(ads.form == form)[0])
      known = ", ".join(sorted(templates))
      where = f"ads.form, row {row + 1} (ad {ads.ad_id[row]})"
      raise schema.DataError(f"{where}: {str(form)!r} is not in {known}, nor empty")
  clauses = {
    str(form): [(c, _fields(c, str(form))) for c in (templates[form] if form else DEFAULT)]
    for form in forms
  }
  columns = {field: getattr(ads, field) for field in FIELDS}
  texts = []
  for row, form in enumerate(ads.form):
    values = {field: column[row] for field, column in columns.items()}
    # Known is a price that is a number, and text that is not empty. A clause needs all its fields.
    known = {
      field: v for field, v in values.items() if (np.isfinite(v) if field == "price" else v != "")
    }
    texts.append(
      ". ".join(c.format(**known) for c, fields in clauses[str(form)] if fields <= known.keys())
    )
  return texts


def _fields(clause: str, form: str) -> set[str]:
  """Names of the fields of a clause, checked."""
  names = {name for _, name, _, _ in string.Formatter().parse(clause) if name is not None}
  if names - set(FIELDS):
    unknown = ", ".join(sorted(names - set(FIELDS)))
    raise schema.DataError(
      f"template {form!r}: unknown field {unknown} in {clause!r}; fields are {', '.join(FIELDS)}"
    )
  return names
