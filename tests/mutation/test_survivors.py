"""The list of mutants that no test notices."""

import pathlib
import tomllib

HERE = pathlib.Path(__file__).parent


def test_every_survivor_is_of_a_file_that_is_there_and_has_a_reason():
  entries = tomllib.loads((HERE / "survivors.toml").read_text()).get("survivor", [])
  for entry in entries:
    assert set(entry) == {"module", "change", "equivalent", "reason"}, entry
    module = pathlib.Path(HERE.parents[1], entry["module"])
    assert module.is_file(), entry["module"]
    # The changed line must still stand there, or the entry explains nothing.
    lines = " ".join(line.strip() for line in module.read_text().splitlines())
    assert entry["change"].partition(" => ")[0].strip() in lines, entry
    assert isinstance(entry["equivalent"], bool) and len(entry["reason"]) > 20, entry
  changes = [(entry["module"], entry["change"]) for entry in entries]
  assert len(set(changes)) == len(changes)
