"""Flags of which ads are wanted, for the binaries that make lists."""

from absl import flags

from gr4ad_jax.catalogue.choice import Choice

# they belong to the binary that calls define_flags, so that its --help lists them
flags.disclaim_key_flags()


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines --not_ads, --only_accounts and --only_categories."""
  flags.DEFINE_list("not_ads", [], "Ids of ads that are not wanted.", flag_values=flag_values)
  flags.DEFINE_list(
    "only_accounts",
    [],
    "The only advertisers whose ads are wanted; empty: all.",
    flag_values=flag_values,
  )
  flags.DEFINE_list(
    "only_categories",
    [],
    "The only categories whose ads are wanted; empty: all.",
    flag_values=flag_values,
  )


def choice(given: flags.FlagValues = flags.FLAGS) -> Choice:
  """What the flags ask for."""
  return Choice(
    not_ads=tuple(given.not_ads),
    only_accounts=tuple(given.only_accounts),
    only_categories=tuple(given.only_categories),
  )
