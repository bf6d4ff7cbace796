"""XLA against eager PyTorch and torch.compile, on equal weights and inputs, outputs checked before timing."""
