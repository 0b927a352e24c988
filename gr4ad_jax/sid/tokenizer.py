"""The UA-SID tokenizer: it turns an ad into its sequence of codes (docs/design/method.md §1).

The way is content -> tower -> balanced residual k-means -> hash for the last level. In GR4AD
(arXiv:2602.22732) codebooks that differ in size are called multi-resolution, and the hash, which
tells accounts apart, multi-granularity.

Vectors of co-occurrence may stand beside the tower's: content says what an ad is like, they say
whom it is taken with. In place of k-means' centroids there may be the codes of an RQ-VAE. They are
balanced in the same way.
"""

import dataclasses
import functools
import logging

import numpy as np

from gr4ad_jax import config as settings
from gr4ad_jax.data import schema
from gr4ad_jax.sid import encoders, kmeans, last_level, rqvae, tokenizer_file, tower
from gr4ad_jax.sid.nearest import STEP, Shipped, Sliceable, nearest, ship
from gr4ad_jax.sid.rows import Residual
from gr4ad_jax.swing import cooccurrence, swing
from gr4ad_jax.swing.by_config import co_occurrence

# Share of the Swing pairs that no tower is trained on. The quality report is measured on them.
HELD_OUT = 0.1


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A fitted tokenizer.

  Attributes:
    config: the settings it was fitted with.
    seed: seed it was fitted with.
    centroids: one [V_t, D] float32 array for each level but the last. With an RQ-VAE they live in
      the space of its latents.
    tower: the embedding tower. None where `tower_steps` is 0: content vectors serve as they are.
    bridge: [D, cooccurrence_width] float32, a linear map from an ad's unit vector to its vector of
      co-occurrence, for ads that were never taken. None without --cooccurrence_width.
    latent: the RQ-VAE's encoder. None with --quantizer=kmeans.
  """

  config: settings.SidConfig
  seed: int
  centroids: tuple[np.ndarray, ...]
  tower: tower.Tower | None
  bridge: np.ndarray | None = None
  latent: rqvae.Encoder | None = None

  @property
  def width(self) -> int:
    """Width of the ads' vectors."""
    return (
      self.centroids[0].shape[1]
      if self.latent is None
      else self.latent.params["hidden/kernel"].shape[0]
    )

  @property
  def codebooks(self) -> tuple[int, ...]:
    """Codes a level."""
    return self.config.codebooks

  @functools.cached_property
  def _shipped(self) -> tuple[Shipped, ...]:
    """The centroids on a device. They go there once, also for a server that encodes ad by ad."""
    return tuple(map(ship, self.centroids))

  def embed(self, ads: schema.AdTable) -> np.ndarray:
    """Unified ad embeddings, [N, D] float32, by content alone, so ads need not have been seen.

    They are of length 1. With a bridge, what it makes of them stands beside them.
    """
    return self.vectors(ads)[:]

  def vectors(self, ads: schema.AdTable) -> Sliceable:
    """What `embed` gives, by rows. Without a tower, a .npy file's rows are read when asked for."""
    text_ND = encoders.unit_rows(ads, self.config.encoder)
    unit_ND = text_ND if self.tower is None else self.tower.embed(text_ND, ads)
    if self.bridge is None:
      return unit_ND
    # The product needs all rows in memory.
    unit_ND = unit_ND[:]
    return np.concatenate([unit_ND, unit_ND @ self.bridge], axis=1)

  def quantized(self, vectors_ND: np.ndarray) -> np.ndarray:
    """What the first level codes: the vectors, or the RQ-VAE's latents of them."""
    return vectors_ND if self.latent is None else self.latent(vectors_ND)

  def encode(self, ads: schema.AdTable, existing: last_level.Existing | None = None) -> np.ndarray:
    """UA-SIDs of ads that may never have been seen (docs/design/method.md §1.2).

    Each level takes the nearest centroid, however many ads it has already.

    Args:
      ads: N new ads.
      existing: UA-SIDs that are given already, and never move. In probe mode new ads keep clear of
        them. An ad whose nearest prefix is full goes to the next prefix with room.

    Returns:
      [N, T] int32 codes.

    Raises:
      schema.DataError: vectors of another width than the tokenizer was fitted on.
    """
    vectors_ND = self.vectors(ads)
    if vectors_ND.shape[1] != self.width:
      raise schema.DataError(
        f"vectors are {vectors_ND.shape[1]} wide; the tokenizer was fitted on {self.width}"
      )
    prefix_NP = np.zeros((len(ads), len(self.centroids)), np.int32)
    # All levels of a chunk before the next chunk, so that vectors on disk are read once.
    for at in range(0, len(ads), STEP):
      residual_ND = self.quantized(vectors_ND[at : at + STEP])
      for level, centroids_CD in enumerate(self.centroids):
        code_N = nearest(residual_ND, self._shipped[level], 1)[0][:, 0]
        # [C, D] gathered by the ads' codes: [chunk, D]. Not in place: the residual may be a view of
        # `vectors_ND`, which `nearby` reads again.
        residual_ND = residual_ND - centroids_CD[code_N]
        prefix_NP[at : at + STEP, level] = code_N
    # A function, not an array: few ads find their prefix full, and only theirs are computed again.
    nearby = self.centroids, lambda row: self.quantized(vectors_ND[row : row + 1])[0]
    return last_level.complete(
      ads, prefix_NP, self.codebooks[-1], self.config.last_level, existing, nearby
    )

  def save(self, directory: str) -> None:
    """Writes `tokenizer.npz` (`tokenizer_file`)."""
    parts = tokenizer_file.Parts(
      self.config, self.seed, self.centroids, self.tower, self.bridge, self.latent
    )
    tokenizer_file.write(directory, parts)

  @classmethod
  def load(cls, directory: str) -> "Tokenizer":
    """Reads what `save` wrote. Raises what `tokenizer_file.read` does."""
    return cls(*tokenizer_file.read(directory))


def fit(
  ads: schema.AdTable,
  events: schema.EventLog,
  config: settings.SidConfig,
  *,
  seed: int,
  log: logging.Logger | None = None,
  told: swing.Told | None = None,
) -> tuple[Tokenizer, np.ndarray]:
  """Fits a tokenizer: Swing, tower, co-occurrence vectors and codebooks, from training events only.

  Without a tower, vectors of a .npy file stay on disk. Every level then reads the rows that it
  works on, and takes the centroids of the levels before from them. A tower holds all content
  vectors and its own in memory. So do --cooccurrence_width and an RQ-VAE.

  Args:
    ads: N ads.
    events: the log.
    config: settings. Two levels or more are needed.
    seed: of everything random. The same seed gives the same codes.
    log: is told the tower's and the RQ-VAE's losses, and how full the codes of a level are.
    told: hears how far Swing and k-means are.

  Returns:
    The tokenizer, and the [N, T] int32 UA-SIDs of the ads. Those are balanced, so `encode` on the
    same ads may differ. In probe mode no two ads share theirs while there are as many UA-SIDs as
    ads.

  Raises:
    settings.ConfigError: fewer than two levels, or an empty one; or a --cooccurrence_width that is
      not below the number of ads.
    schema.DataError: bad vectors, forms, or no co-occurrence to learn from.
  """
  _check(config, len(ads))
  text_ND = encoders.unit_rows(ads, config.encoder)
  trained = None
  if config.tower_steps:
    pairs, _ = co_occurrence(events, len(ads), config, seed, told).split(HELD_OUT, seed)
    trained = tower.fit_tower(text_ND[:], ads, pairs, **tower_settings(config), seed=seed, log=log)
  residual_ND: Sliceable = text_ND if trained is None else trained.embed(text_ND, ads)
  bridge = None
  if config.cooccurrence_width:
    unit_ND = residual_ND[:]
    taken_ND = _taken_together(events, len(ads), config)
    # Ads that were never taken have zeros there. They get what the bridge, fitted on the others,
    # guesses from their content; `Tokenizer.vectors` does so for all. (N, 1) chooses whole rows of
    # (N, cooccurrence_width).
    known_N = taken_ND.any(axis=1)
    bridge = cooccurrence.ridge(unit_ND[known_N], taken_ND[known_N])
    residual_ND = np.concatenate(
      [unit_ND, np.where(known_N[:, None], taken_ND, unit_ND @ bridge)], axis=1
    )
  latent, centroids, prefix_NP = _quantize(residual_ND, config, seed, log, told)
  fitted = Tokenizer(config, seed, centroids, trained, bridge, latent)
  nearby = centroids, lambda row: fitted.quantized(residual_ND[row : row + 1])[0]
  return fitted, last_level.complete(
    ads, prefix_NP, config.codebooks[-1], config.last_level, nearby=nearby
  )


def _check(config: settings.SidConfig, num_ads: int) -> None:
  """Raises what `fit` says of the settings, before anything is read."""
  if len(config.codebooks) < 2 or min(config.codebooks) < 1:
    raise settings.ConfigError(
      f"codebooks {config.codebooks}: two levels or more, of a code or more, are needed"
    )
  if config.cooccurrence_width and config.cooccurrence_width >= num_ads:
    limit = f"below {num_ads}, the number of ads"
    raise settings.ConfigError(
      f"--cooccurrence_width={config.cooccurrence_width} is not allowed: {limit}"
    )


def _quantize(
  residual_ND: Sliceable,
  config: settings.SidConfig,
  seed: int,
  log: logging.Logger | None,
  told: swing.Told | None,
) -> tuple[rqvae.Encoder | None, tuple[np.ndarray, ...], np.ndarray]:
  """The levels before the last, by residual quantisation (docs/design/method.md §1.2).

  Returns:
    The RQ-VAE's encoder or None, the [V_t, D] centroids of each level, and the [N, T-1] codes.
  """
  latent = None
  iterations = config.kmeans_iterations
  starts = (None,) * (len(config.codebooks) - 1)
  if config.quantizer == "rqvae":
    sizes = {"width": config.rqvae_width, "steps": config.rqvae_steps}
    latent, starts = rqvae.fit(residual_ND[:], config.codebooks[:-1], **sizes, seed=seed, log=log)
    # No iterations: the trained codes stay where they are. Only who has which is balanced.
    residual_ND = latent(residual_ND)
    iterations = 0
  centroids = []
  levels = []
  for level, (size, start_CD) in enumerate(zip(config.codebooks[:-1], starts, strict=True)):
    heard = told and functools.partial(told, f"k-means, level {level + 1}")
    # A seed of its own for each level: with one seed, all would start from the same ads.
    centroids_CD, code_N = kmeans.balanced_kmeans(
      residual_ND, size, iterations=iterations, seed=seed + level, start_CD=start_CD, told=heard
    )
    # A view, not an array: rows are subtracted when asked for, so points may stay on disk.
    residual_ND = Residual(residual_ND, centroids_CD, code_N)
    centroids.append(centroids_CD)
    levels.append(code_N)
    if log:
      count = np.bincount(code_N, minlength=size)
      log.info(
        "level %d: %d of %d codes used, %d ads in the largest",
        level + 1,
        (count > 0).sum(),
        size,
        count.max(),
      )
  return latent, tuple(centroids), np.stack(levels, axis=1)


def _taken_together(events: swing.Columns, num_ads: int, config: settings.SidConfig) -> np.ndarray:
  """[N, cooccurrence_width] float32 vectors of what users took near what in training.

  An ad that was never taken has zeros. The root mean square of the others' lengths is 1, so they
  weigh as much as the unit vectors that they stand beside.
  """
  in_train_E = np.asarray(events.split) == 0
  user_L = np.asarray(events.user)[in_train_E]
  ad_L = np.asarray(events.ad)[in_train_E]
  return cooccurrence.ppmi_vectors(
    user_L, ad_L, num_ads, config.cooccurrence_width, config.cooccurrence_window
  )


def tower_settings(config: settings.SidConfig) -> dict:
  """The keyword arguments of `tower.fit_tower` that the settings hold."""
  return {
    "width": config.tower_width,
    "steps": config.tower_steps,
    "temperature": config.tower_temperature,
  }
