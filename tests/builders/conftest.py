"""A CSV pair, and the config that reads it."""

from tests.reading.conftest import config  # noqa: F401
