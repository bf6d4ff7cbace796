"""Readers of the user's own data: image files, folders, arrays, captions, texts."""
