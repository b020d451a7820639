"""Visual words of LUNA16, or of your own scans, as a TFDS data set."""

# Relative: `tfds build` in beam_jobs/ imports this folder by its bare name.
from .transvw_luna16_dataset_builder import Builder

__all__ = ['Builder']
