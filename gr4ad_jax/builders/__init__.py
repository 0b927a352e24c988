"""Data sets: TFDS builders, one for each, and `prepare`, which makes them ready and loads them."""
