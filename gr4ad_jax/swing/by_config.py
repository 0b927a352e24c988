"""Swing as the config asks for it: fitted here, or read from where a pipeline left it."""

from gr4ad_jax.config import SidConfig
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.swing import swing


def co_occurrence(
  events: swing.Columns,
  num_ads: int,
  config: SidConfig,
  seed: int,
  told: swing.Told | None = None,
) -> swing.Neighbors:
  """Swing neighbours (`swing.py`) from the training visits, by the settings.

  A tower learns from all of them but those held out (`sid/tokenizer.HELD_OUT`).

  Raises:
    DataError: bad columns; or `swing_path` is damaged, or holds neighbours that were made
      by other settings or for another number of ads.
    OSError: `swing_path` cannot be read.
  """
  if config.swing_path:
    found = swing.Neighbors.load(config.swing_path, swing_settings(config, seed))
    # The file does not say which ads it is of; their number is what can be compared.
    if len(found.ads_NK) != num_ads or found.ads_NK.max(initial=-1) >= num_ads:
      raise DataError(
        f"{config.swing_path}: neighbours of {len(found.ads_NK)} ads; the table has {num_ads}"
      )
    return found
  arguments = swing_arguments(config, seed)
  return swing.fit_swing(events, num_ads, **arguments, memory_mb=config.swing_memory_mb, told=told)


def swing_arguments(config: SidConfig, seed: int) -> dict[str, float]:
  """The keyword arguments of Swing that the settings hold, here and as a Beam pipeline."""
  return {
    "alpha": config.swing_alpha,
    "neighbors": config.swing_neighbors,
    "max_users_per_item": config.swing_visits,
    "max_items_per_user": config.swing_basket,
    "min_support": config.swing_support,
    "seed": seed,
  }


def swing_settings(config: SidConfig, seed: int) -> dict[str, float]:
  """The settings that Swing's neighbours depend on, by flag. Memory is not among them."""
  names = ("swing_alpha", "swing_neighbors", "swing_visits", "swing_basket", "swing_support")
  return {name: getattr(config, name) for name in names} | {"seed": seed}
