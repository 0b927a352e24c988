"""Addresses in a bucket, and where a copy of what lies there is kept on this machine."""

import hashlib
import os
import re

from gr4ad_jax import files
from gr4ad_jax.knobs import ConfigError

SCHEMES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gs")}
"""Which package speaks to a store, and the extra that brings it."""

_BUCKET = re.compile(r"[\w.-]+(/.*)?")
_PLAIN = re.compile(r"[^\w.-]")  # what a folder's name here goes without


def scheme_of(text: str) -> str:
  """`s3` of `s3://bucket/name`; empty where the text is no address in a bucket."""
  scheme, mark, _ = text.partition("://")
  return scheme if mark and scheme in SCHEMES else ""


def is_url(text: str) -> bool:
  """Whether a text is an address in a bucket."""
  return bool(scheme_of(text))


def checked(flag: str, url: str) -> str:
  """The address without slashes at its end.

  Raises:
    ConfigError: it names no bucket, or has empty, `.` or `..` parts, which buckets and folders
      read differently.
  """
  scheme, _, rest = url.partition("://")
  rest = rest.rstrip("/")
  if not _BUCKET.fullmatch(rest) or {"", ".", ".."} & set(rest.split("/")):
    raise ConfigError(
      f"--{flag}={url} is not allowed: {scheme}://<bucket>/<name>, without empty, . or .. parts"
    )
  return f"{scheme}://{rest}"


def cache_folder(kind: str, url: str) -> str:
  """Where a copy of an address is kept: `<cache>/<kind>/<digest of the address>`.

  The cache is $GR4AD_CACHE, else `gr4ad_jax` in the user's ($XDG_CACHE_HOME, else ~/.cache).
  """
  root = os.environ.get("GR4AD_CACHE") or files.user_cache()
  digest = hashlib.sha256(url.encode()).hexdigest()[:16]
  return os.path.join(os.path.abspath(root), kind, digest)


def last_part(url: str) -> str:
  """The last part of an address as a name that any file system and Orbax take."""
  return _PLAIN.sub("_", url.rpartition("/")[2]) or "run"
