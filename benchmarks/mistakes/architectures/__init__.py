"""Small architectures, each written down twice: correct in PyTorch, and in Flax with a switch for every mistake."""
