"""The four tasks, and what they share: augmentation, evaluation, retrieval, baselines and figures."""
