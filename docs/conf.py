"""How Sphinx builds these pages: `make docs`."""

import pathlib
import sys

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from docs import flags_page  # noqa: E402

project = "gr4ad_jax"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # they stand in the signatures' names of axes and in the docstrings
autodoc_use_type_comments = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes in a list, not each with an index entry of its own
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "gr4ad_jax"
exclude_patterns = ["_build"]
smartquotes = False  # they would make a dash of the two before a flag's name


class Flags(SphinxDirective):
  """`{flags} data`: the table of a section's flags, made from the config whenever the pages are
  built.
  """

  required_arguments = 1

  def run(self) -> list[nodes.Node]:
    """The table's nodes."""
    return self.parse_text_to_nodes(flags_page.table(self.arguments[0]))


def setup(app) -> None:
  """Makes the directive known to Sphinx."""
  app.add_directive("flags", Flags)
