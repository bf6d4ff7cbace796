"""Stands in the way of JAX: with this folder on PYTHONPATH, `import jax` fails as if it were not installed."""

raise ModuleNotFoundError("No module named 'jax'", name="jax")
