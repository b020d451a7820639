"""Settings of discovery; the defaults are those of the paper's study."""

import dataclasses
import math

from transvw_tf2 import errors

_LEAST = {'words': 1, 'instances': 1, 'tries': 1}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of discovery; the defaults are those of the paper's study.

  Attributes:
    words: number of words wanted; fewer are found where there are fewer
      training patients.
    instances: training patients per word, K.
    validation_instances: validation patients per word.
    xy_border: voxels in x and y that no cube enters.
    z_border: slices that no cube enters.
    min_distance: least distance between two places, voxels.
    tries: places drawn in a scan before another reference is taken.
    max_soft_tissue: a place with a larger share of soft tissue is refused.
    seed: decides everything that is random.
  """

  words: int = 44
  instances: int = 200
  validation_instances: int = 30
  xy_border: int = 100
  z_border: int = 30
  min_distance: float = 5.0
  tries: int = 200
  max_soft_tissue: float = 0.15
  seed: int = 1

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      least = _LEAST.get(field.name, 0)
      kinds = (int,) if field.type is int else (int, float)
      if (
        not isinstance(value, kinds)
        or isinstance(value, bool)
        or not (math.isfinite(value) and value >= least)
      ):
        kind = 'an integer' if field.type is int else 'a number'
        raise errors.UserError(
          f'{field.name} must be {kind}, at least {least}, got {value!r}'
        )
