"""Stands in the way of PyTorch: with this folder on PYTHONPATH, `import torch` fails as if it were not installed."""

raise ModuleNotFoundError("No module named 'torch'", name="torch")
