"""One run of training: the loop, its folder, its checkpoints, what stops it and what it reports."""
