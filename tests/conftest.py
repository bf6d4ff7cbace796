"""These tests run without PyTorch: an accidental import of it anywhere below jaxmodels fails them."""

from pathlib import Path

import jax


jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_numpy_rank_promotion", "allow")
