"""Your own labelled scans as a TFDS data set."""

# Relative: `tfds build` in beam_jobs/ imports this folder by its bare name.
from .labelled_scans_dataset_builder import Builder

__all__ = ['Builder']
