"""Which classic mistake of porting explains a difference.

PyTorch's model runs again with one of its operations computed as a wrong port computes it: GELU in the tanh form, an
inverted mask, another padding. A mistake is named only if JAX's arrays then come out within the tolerance of the
comparison. Nothing is guessed: where no mistake explains the difference, none is named.
"""
