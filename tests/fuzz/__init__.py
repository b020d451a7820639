"""Fuzzing of all that reads a file or a message from elsewhere."""
