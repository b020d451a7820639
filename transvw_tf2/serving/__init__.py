"""The encoder as a SavedModel and its uses."""
