"""Published runs: folders to take away, which nobody trains further, and where they are found.

`pretrained:online_retail` is shipped with the package, `hf:<owner>/<name>` lies on the Hugging Face
Hub, and any other text is a directory. `delivery/publish` makes such a folder. A run that is no
published one may lie in a bucket, `s3://…` or `gs://…`: it is found through a local directory.
"""

import hashlib
import os
import pathlib
import re

import jax

from gr4ad_jax import checksums
from gr4ad_jax.config import WEIGHTS, Config, ConfigError, is_published
from gr4ad_jax.data.extras import optional
from gr4ad_jax.remote import mirrors, urls

SHIPPED = pathlib.Path(__file__).parents[1] / "pretrained"
_SHIPPED = "pretrained:"
_HUB = "hf:"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def names() -> list[str]:
  """Names of the runs that are shipped with the package."""
  return sorted(path.name for path in SHIPPED.iterdir() if is_published(str(path)))


def locate(workdir: str, new: bool = False) -> str:
  """The directory of a run.

  Args:
    workdir: a directory, `pretrained:<name>`, or `hf:<owner>/<name>`, with `@<revision>` as wanted;
      what is not yet in the hub's cache is fetched. Or an address in a bucket: what is newer there
      than in the run's local directory is fetched.
    new: whether a run in a bucket may be one that is only begun.

  Raises:
    ConfigError: no such run is shipped, or there is no such repository; or a bucket in a job of
      several processes.
    FileNotFoundError: no run lies in the bucket, and `new` is not set.
    ImportError: huggingface_hub, or what speaks to the bucket, is missing.
    OSError: the hub or the bucket cannot be reached.
  """
  if urls.is_url(workdir):
    # Each process writes its part of a checkpoint into one directory, which is renamed when whole.
    if jax.process_count() > 1:
      raise ConfigError(
        f"--workdir={workdir} is not allowed in a job of {jax.process_count()} processes: they "
        "write one checkpoint together; name a directory on a disk that all of them see"
      )
    return mirrors.local_folder(workdir, new)
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


def state_dir(config: Config) -> str:
  """Where a server of a run keeps its state: `output_dir`, but for a run in a bucket, whose local
  directory is a copy. Then it is a folder of the user's, as for a published run.
  """
  url = mirrors.url_of(config.workdir)
  if config.serving.state_dir or not url:
    return output_dir(config)
  return os.path.join(
    _home(), f"{urls.last_part(url)}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
  )


def output_dir(config: Config) -> str:
  """Where a server or an evaluation of a run writes: --state_dir, else the run's own directory.

  That of a published run may be read-only, and belongs to many: then it is a folder of the user's,
  `~/.local/state/gr4ad_jax/<name>-<digest of the weights>`, or below $XDG_STATE_HOME.
  """
  if config.serving.state_dir:
    return config.serving.state_dir
  if not is_published(config.workdir):
    return config.workdir
  known = (checksums.listed(config.workdir) or {}).get(WEIGHTS) or {"unknown"}
  name = os.path.basename(os.path.abspath(config.workdir))
  return os.path.join(_home(), f"{name}-{min(known)[:8]}")


def _home() -> str:
  home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
  return os.path.join(home, "gr4ad_jax")
