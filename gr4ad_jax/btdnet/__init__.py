"""BTDNet, rebuilt from the abstract of arXiv:2502.08486: an aerial image and a sentence in, a mask
out.
"""
