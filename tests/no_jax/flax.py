"""Stands in the way of JAX: with this folder on PYTHONPATH, `import flax` fails as if it were not installed."""

raise ModuleNotFoundError("No module named 'flax'", name="flax")
