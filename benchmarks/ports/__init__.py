"""Ports that others published, compared with the PyTorch classes that they follow."""
