"""The container's files: flags that exist, paths that the server has, a user who is not root."""

import json
import pathlib
import re

import yaml

from experiments import cli
from gr4ad_jax import config
from gr4ad_jax.runs import published

_ROOT = pathlib.Path(__file__).parents[2]
_DOCKERFILE = (_ROOT / "Dockerfile").read_text(encoding="utf-8")
_COMPOSE = yaml.safe_load((_ROOT / "compose.yaml").read_text(encoding="utf-8"))


def _check(command: list[str]) -> dict[str, str]:
  """Flag -> value of a command of `gr4ad`, whose names exist."""
  name, *given = command
  assert name in cli.commands()
  found = dict(flag.removeprefix("--").split("=", 1) for flag in given)
  assert not found.keys() - {*config.all_fields(), "workdir", "log_format"}
  return found


def _entry(keyword: str) -> list[str]:
  text = re.search(rf"^{keyword} (\[.*?\])$", _DOCKERFILE, re.MULTILINE | re.DOTALL)[1]
  return json.loads(text.replace("\\\n", ""))


def test_the_image_serves_the_shipped_run_as_nobody_in_particular():
  assert _entry("ENTRYPOINT") == ["gr4ad"]
  given = _check(_entry("CMD"))
  assert published.locate(given["workdir"]) and given["host"] == "0.0.0.0"
  assert given["token_file"]  # beyond loopback the server asks for one
  users = re.findall(r"^USER (.+)$", _DOCKERFILE, re.MULTILINE)
  assert users[-1].isdigit() and int(users[-1]) > 0
  assert _DOCKERFILE.rindex("\nUSER ") < _DOCKERFILE.rindex("\nCMD ")
  source = (_ROOT / "gr4ad_jax" / "serving" / "app.py").read_text(encoding="utf-8")
  asked = re.search(rf"127\.0\.0\.1:{given['port']}(/\w+)", _DOCKERFILE)[1]
  assert f'"{asked}"' in source
  extras = re.search(r"\.whl\)\[(.*?)\]", _DOCKERFILE)[1].split(",")
  setup = (_ROOT / "setup.cfg").read_text(encoding="utf-8")
  assert all(f"\n{extra} =\n" in setup for extra in extras)


def test_what_the_image_may_write_is_a_volume_of_the_compose_file():
  server = _COMPOSE["services"]["server"]
  given = _check(server["command"])
  mounts = [volume.split(":") for volume in server["volumes"]]
  writable = [mount[1] for mount in mounts if len(mount) == 2]
  folders = re.search(r"^VOLUME (\[.*\])$", _DOCKERFILE, re.MULTILINE)[1]
  assert server["read_only"] and sorted(writable) == json.loads(folders)
  assert given["state_dir"].startswith("/var/lib/gr4ad/")
  assert {mount[0] for mount in mounts if mount[0][0] != "."} < set(_COMPOSE["volumes"])
  (secret,) = server["secrets"]
  assert given["token_file"] == f"/run/secrets/{secret}" and secret in _COMPOSE["secrets"]
  for ignored in (".dockerignore", ".gitignore"):  # a token is in no image and no commit
    lines = (_ROOT / ignored).read_text(encoding="utf-8").split()
    assert _COMPOSE["secrets"][secret]["file"].removeprefix("./") in [
      line.removeprefix("/") for line in lines
    ]
  for service in _COMPOSE["services"].values():
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
