"""GR4AD: generative recommendation for advertising in JAX/Flax (arXiv:2602.22732)."""

__version__ = "0.1.0"
