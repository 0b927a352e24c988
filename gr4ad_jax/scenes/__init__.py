"""Rendered aerial scenes with sentences: seeded, the same everywhere; of no data set."""
