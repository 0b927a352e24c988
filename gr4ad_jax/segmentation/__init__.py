"""Finding in an aerial image what a sentence names: data, training, metrics and use."""
