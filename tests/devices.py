"""Processes of the tests' own that see several CPU devices."""

import os


def environment(devices: int, **more: str) -> dict[str, str]:
  """This process's environment, with so many forced CPU devices and `more` variables."""
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
  return os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"} | more
