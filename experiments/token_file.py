"""The file of --token_file: read by the server, and by whoever plays a log to it."""

from gr4ad_jax.config import ConfigError


def read_token(path: str) -> str:
  """The bearer token in a file; empty without a path. Raises ConfigError for a file that holds
  none.
  """
  if not path:
    return ""
  with open(path, "rb") as file:
    token = file.read().strip()
  if not token.isascii() or len(token.split()) != 1:
    raise ConfigError(f"--token_file={path} is not allowed: a file with one word of ASCII")
  return token.decode()
