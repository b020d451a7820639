"""The visual words that the authors of TransVW release, as a TFDS data set."""

# Relative: `tfds build` in beam_jobs/ imports this folder by its bare name.
from .transvw_released_dataset_builder import Builder

__all__ = ['Builder']
