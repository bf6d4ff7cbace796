"""Programs for TPUs, compiled by the TPU's own compiler; nothing is run, and no TPU is needed."""
