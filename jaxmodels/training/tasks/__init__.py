"""The four tasks, with what belongs to them: augmentation, baselines and figures."""
