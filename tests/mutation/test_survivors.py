"""The list of mutants that no test notices."""

import pathlib
import tomllib

HERE = pathlib.Path(__file__).parent


def test_every_survivor_is_of_a_file_that_is_there_and_has_a_reason():
  entries = tomllib.loads((HERE / "survivors.toml").read_text()).get("survivor", [])
  for entry in entries:
    assert set(entry) == {"module", "change", "equivalent", "reason"}, entry
    assert pathlib.Path(HERE.parents[1], entry["module"]).is_file(), entry["module"]
    assert isinstance(entry["equivalent"], bool) and len(entry["reason"]) > 20, entry
  changes = [(entry["module"], entry["change"]) for entry in entries]
  assert len(set(changes)) == len(changes)
