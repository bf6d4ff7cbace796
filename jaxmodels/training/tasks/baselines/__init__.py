"""What each task has to beat: simple methods that learn nothing deep."""
