"""What runs on a GPU computes the same as a CPU in float64. Without a GPU every test is skipped."""
