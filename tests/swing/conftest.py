"""The small shop of `tests/sid`, for Swing."""

from tests.sid.conftest import make, shop  # noqa: F401
