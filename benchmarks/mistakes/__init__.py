"""How well rules of comparison find mistakes that are planted in small ports."""
