"""Discovery of visual words: plain functions on arrays."""
