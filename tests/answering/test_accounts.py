"""Budgets on disk."""

import pytest

from gr4ad_jax.answering.accounts import FILE, Accounts
from gr4ad_jax.checksums import DamagedError
from gr4ad_jax.data.schema import DataError


def test_what_was_put_is_there_after_a_restart(tmp_path):
  accounts = Accounts.open(str(tmp_path))
  assert accounts.budgets == {}
  accounts.put("a", 3)
  accounts.put("b", 4.5)
  accounts.put("a", None)
  assert Accounts.open(str(tmp_path)).budgets == {"b": 4.5} == accounts.budgets


def test_a_change_that_cannot_be_written_shows_nowhere(tmp_path):
  accounts = Accounts(str(tmp_path / "gone" / "file" / FILE), {"a": 1.0})
  (tmp_path / "gone").write_text("in the way")
  with pytest.raises(OSError):
    accounts.put("a", 2.0)
  assert accounts.budgets == {"a": 1.0}


@pytest.mark.parametrize(
  ("text", "error"),
  [('["a"]', DataError), ('{"a": 0}', DataError), ('{"a": true}', DataError),
   ('{"a": "1"}', DataError), ("{", DamagedError)],
)  # fmt: skip
def test_another_file_is_named(tmp_path, text, error):
  (tmp_path / FILE).write_text(text)
  with pytest.raises(error, match=FILE):
    Accounts.open(str(tmp_path))
