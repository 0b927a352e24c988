"""The file of a tokenizer: `tokenizer.npz`, which holds arrays and settings.

They are one file, so neither can stand there without the other.
"""

import dataclasses
import functools
import json
import os
from typing import NamedTuple

import numpy as np

from gr4ad_jax import config as settings
from gr4ad_jax import files
from gr4ad_jax.data import schema
from gr4ad_jax.sid import rqvae, tower
from gr4ad_jax.sid.params import content_width

_NAME = "tokenizer.npz"


class Parts(NamedTuple):
  """What a file holds: the attributes of a `Tokenizer`, in their order."""

  config: settings.SidConfig
  seed: int
  centroids: tuple[np.ndarray, ...]
  tower: tower.Tower | None
  bridge: np.ndarray | None
  latent: rqvae.Encoder | None


def write(directory: str, parts: Parts) -> None:
  """Writes the file, under a temporary name first. The directory is made where it is missing."""
  os.makedirs(directory, exist_ok=True)
  arrays = {f"centroids/{level}": value for level, value in enumerate(parts.centroids)}
  about = {"config": dataclasses.asdict(parts.config), "seed": parts.seed, "price": None}
  if parts.tower is not None:
    arrays |= {f"tower/{name}": value for name, value in parts.tower.params.items()}
    about["price"] = parts.tower.price
  if parts.bridge is not None:
    arrays["bridge"] = parts.bridge
  if parts.latent is not None:
    arrays |= {f"rqvae/{name}": value for name, value in parts.latent.params.items()}
  files.save_arrays(os.path.join(directory, _NAME), about=np.asarray(json.dumps(about)), **arrays)


def read(directory: str) -> Parts:
  """Reads what `write` wrote.

  Raises:
    FileNotFoundError: there is no tokenizer.
    files.DamagedError: the file is another than was written.
    schema.DataError: it is incomplete, or its arrays are not of the shapes that its own settings
      ask for.
  """
  path = os.path.join(directory, _NAME)
  try:
    arrays = files.load_all(path)
  except FileNotFoundError as error:
    raise FileNotFoundError(f"{path}: no tokenizer here") from error
  try:
    about = json.loads(str(arrays.pop("about")))
    config = settings.SidConfig(
      **about["config"] | {"codebooks": tuple(about["config"]["codebooks"])}
    )
    # The last level is no quantiser's, so it has no centroids.
    centroids = tuple(arrays[f"centroids/{level}"] for level in range(len(config.codebooks) - 1))
  except (KeyError, TypeError, ValueError) as error:
    raise schema.DataError(f"{path}: not a whole tokenizer file ({error!r})") from error
  if tuple(map(len, centroids)) != config.codebooks[:-1]:
    raise schema.DataError(
      f"{path}: centroids of {[len(c) for c in centroids]} codes, codebooks {config.codebooks}"
    )
  latent, width = _latent(path, config, arrays, centroids)
  bridge = arrays.get("bridge")
  beside = config.cooccurrence_width
  # np.shape(None) is (): without co-occurrence no bridge may be there.
  if np.shape(bridge) != ((width - beside, beside) if beside else ()):
    raise schema.DataError(
      f"{path}: a bridge of shape {np.shape(bridge)}, --cooccurrence_width={beside}"
    )
  trained = _tower(path, config, arrays, about["price"]) if config.tower_steps else None
  return Parts(config, about["seed"], centroids, trained, bridge, latent)


def _latent(
  path: str,
  config: settings.SidConfig,
  arrays: dict[str, np.ndarray],
  centroids: tuple[np.ndarray, ...],
) -> tuple[rqvae.Encoder | None, int]:
  """The RQ-VAE's encoder, None without one; and the width of the ads' vectors."""
  if config.quantizer != "rqvae":
    return None, centroids[0].shape[1]
  # The centroids have the latents' width, so the encoder's first kernel tells that of the vectors.
  latent = rqvae.Encoder(_named(arrays, "rqvae/"))
  width = content_width(
    latent.params, "hidden", functools.partial(rqvae.expected_shapes, config.rqvae_width)
  )
  if not width or centroids[0].shape[1] != config.rqvae_width:
    raise schema.DataError(
      f"{path}: the RQ-VAE's parameters are not those of width {config.rqvae_width}"
    )
  return latent, width


def _tower(
  path: str, config: settings.SidConfig, arrays: dict[str, np.ndarray], price: list[float]
) -> tower.Tower:
  """The tower, with the mean and the spread of prices that it was trained on."""
  params = _named(arrays, "tower/")
  expected = functools.partial(tower.expected_shapes, config.tower_width)
  if not content_width(params, "skip", expected):
    raise schema.DataError(
      f"{path}: the tower's parameters are not those of width {config.tower_width}"
    )
  return tower.Tower(params, tuple(price))


def _named(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
  """The arrays whose names begin with the prefix, by the rest of their names."""
  return {
    name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)
  }
