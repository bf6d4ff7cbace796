"""Training: the five models on real data, on one device or many."""
