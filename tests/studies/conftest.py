"""The tiny data sets of the tests of metrics."""

from tests.evaluation.conftest import bazaar, make_dataset, shop  # noqa: F401
