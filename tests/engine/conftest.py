"""What the tests of the whole server share."""

from tests.serving.conftest import engine, runs, steady, workdir  # noqa: F401
