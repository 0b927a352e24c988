"""The small shop of the tests of UA-SIDs."""

from tests.sid.conftest import make, shop  # noqa: F401
