"""Stands in the way of JAX: with this folder on PYTHONPATH, `import optax` fails as if it were not installed."""

raise ModuleNotFoundError("No module named 'optax'", name="optax")
