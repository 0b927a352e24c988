"""What a plot would draw, without drawing it."""

import pytest

from gr4ad_jax.evaluation import plots


def drawn_figure(monkeypatch, plot):
  """The figure that `plot()` saves; nothing is written."""
  pytest.importorskip("matplotlib")
  saved = []
  with monkeypatch.context() as patched:
    patched.setattr(plots, "_save", lambda figure, path: saved.append(figure))
    plot()
  (figure,) = saved
  return figure


def drawn_axes(monkeypatch, plot):
  """The axes of that figure."""
  return drawn_figure(monkeypatch, plot).axes
