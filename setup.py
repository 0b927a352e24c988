"""The packages of a distribution; all else stands in setup.cfg.

The binaries lie beside the library in a checkout, as `experiments`. Installed, they are
`gr4ad_jax.experiments`: a package named `experiments` would meet those of other projects.
"""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=["gr4ad_jax", "gr4ad_jax.*"]), "gr4ad_jax.experiments"],
  package_dir={"gr4ad_jax.experiments": "experiments"},
)
