"""GR4AD: generative recommendation for advertising in JAX/Flax (arXiv:2602.22732)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from gr4ad_jax.answering.recommender import Recommendation, Recommender

__version__ = "0.1.0"
__all__ = ["Recommendation", "Recommender", "__version__"]


def __getattr__(name: str) -> Any:
  """`Recommender` and `Recommendation`, imported when they are asked for: they bring JAX."""
  if name in ("Recommendation", "Recommender"):
    from gr4ad_jax.answering import recommender

    return getattr(recommender, name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
