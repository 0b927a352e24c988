"""The one training that the tests of the whole server share."""

from tests.serving.conftest import runs  # noqa: F401
