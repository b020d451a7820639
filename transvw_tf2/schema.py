"""Contract between the Beam jobs that write cubes and the training that reads.

Imports nothing heavy: every other module may import it.
"""

import hashlib

# A cube is indexed [x, y, z], like the scan it is cut from.
CUBE_SHAPE = (64, 64, 32)

# Cubes are clipped to this window (HU) when they are written, and scaled to
# [0, 1] by (hu - HU_MIN) / (HU_MAX - HU_MIN) when they are read.
HU_MIN = -1000
HU_MAX = 1000

# 0 = native size, 1 and 2 = random in-plane size.
RESOLUTIONS = (0, 1, 2)
TRAIN_RESOLUTIONS = RESOLUTIONS
VALIDATION_RESOLUTIONS = (0,)

TRAIN = 'train'
VALIDATION = 'validation'
# Of target tasks.
TEST = 'test'
# LUNA16 folds 7-9 are held out for target tasks.
HELD_OUT = 'held_out'


def scale_hu(hu):
  """Scales clipped HU to [0, 1]; works on NumPy arrays and tensors (float)."""
  return (hu - float(HU_MIN)) / float(HU_MAX - HU_MIN)


def example_key(scan_id: str, word: int, resolution: int) -> str:
  """Returns the key of a cube in the data set: never a path, never hash()."""
  return f'{scan_id}/{word:04d}/{resolution}'


def stable_hash(text: str) -> int:
  """Returns a 64-bit hash of `text` that is the same in every process."""
  digest = hashlib.blake2b(text.encode('utf-8'), digest_size=8).digest()
  return int.from_bytes(digest, 'little')
