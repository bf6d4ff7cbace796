"""Times a pair of models on both sides: what `jaxmodels benchmark` and `python -m benchmarks` share."""
