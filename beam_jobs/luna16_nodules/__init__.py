"""The target tasks of LUNA16 as TFDS data sets."""

# Relative: `tfds build` in beam_jobs/ imports this folder by its bare name.
from .luna16_nodules_dataset_builder import Builder

__all__ = ['Builder']
