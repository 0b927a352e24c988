"""Published runs: folders to take away, which nobody trains further, and where they are found.

`pretrained:online_retail` is shipped with the package, `hf:<owner>/<name>` lies on the Hugging Face
Hub, and any other text is a directory. `delivery/publish` makes such a folder.
"""

import os
import pathlib
import re

from gr4ad_jax import checksums
from gr4ad_jax.config import WEIGHTS, Config, ConfigError, is_published
from gr4ad_jax.data.extras import optional

SHIPPED = pathlib.Path(__file__).parents[1] / "pretrained"
_SHIPPED = "pretrained:"
_HUB = "hf:"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def names() -> list[str]:
  """Names of the runs that are shipped with the package."""
  return sorted(path.name for path in SHIPPED.iterdir() if is_published(str(path)))


def locate(workdir: str) -> str:
  """The directory of a run.

  Args:
    workdir: a directory, `pretrained:<name>`, or `hf:<owner>/<name>`, with `@<revision>` as wanted;
      what is not yet in the hub's cache is fetched.

  Raises:
    ConfigError: no such run is shipped, or there is no such repository.
    ImportError: huggingface_hub is missing.
    OSError: the hub cannot be reached.
  """
  if workdir.startswith(_SHIPPED):
    name = workdir.removeprefix(_SHIPPED)
    if name not in names():
      raise ConfigError(
        f"--workdir={workdir} is not allowed: no such run is shipped; there is {', '.join(names())}"
      )
    return str(SHIPPED / name)
  if workdir.startswith(_HUB):
    return _fetched(workdir)
  return workdir


def _fetched(workdir: str) -> str:
  name = workdir.removeprefix(_HUB)
  if not _REPOSITORY.fullmatch(name):
    raise ConfigError(f"--workdir={workdir} is not allowed: hf:<owner>/<name>, or with @<revision>")
  hub = optional("huggingface_hub", "hub")
  repository, _, revision = name.partition("@")
  try:
    return hub.snapshot_download(repository, revision=revision or None)
  except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError) as error:
    raise ConfigError(
      f"--workdir={workdir} is not allowed: the hub has no such repository or revision, or it asks "
      "for a token"
    ) from error
  except (hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError) as error:
    reason = " ".join(str(error).split())[:200]
    raise OSError(f"{workdir} cannot be fetched: {reason}") from error


def output_dir(config: Config) -> str:
  """Where a server or an evaluation of a run writes: --state_dir, else the run's own directory.

  That of a published run may be read-only, and belongs to many: then it is a folder of the user's,
  `~/.local/state/gr4ad_jax/<name>-<digest of the weights>`, or below $XDG_STATE_HOME.
  """
  if config.serving.state_dir:
    return config.serving.state_dir
  if not is_published(config.workdir):
    return config.workdir
  home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
  known = (checksums.listed(config.workdir) or {}).get(WEIGHTS) or {"unknown"}
  name = os.path.basename(os.path.abspath(config.workdir))
  return os.path.join(home, "gr4ad_jax", f"{name}-{min(known)[:8]}")
