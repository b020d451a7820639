"""Settings of discovery; the defaults are those of the paper's study."""

import dataclasses
import math

from transvw_tf2 import errors
from transvw_tf2.discovery import frames

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
    frame: `voxel`, the published method, or `lung`; see `frames`.
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
  frame: str = frames.VOXEL

  def __post_init__(self):
    if self.frame not in frames.FRAMES:
      raise errors.UserError(
        f'frame must be one of {", ".join(frames.FRAMES)}, got {self.frame!r}'
      )
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is str:
        continue
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


def check_same(
  given: Settings, made_with: Settings, source: str, *, leave_out=()
) -> None:
  """Refuses settings that differ from those of a vocabulary.

  A setting that has its default value counts as not given.

  Args:
    given: the settings asked for.
    made_with: those of the vocabulary.
    source: where the vocabulary was read from.
    leave_out: names that may differ.

  Raises:
    UserError: a setting is neither the default nor that of the vocabulary.
  """
  for field in dataclasses.fields(Settings):
    value, other = getattr(given, field.name), getattr(made_with, field.name)
    if field.name not in leave_out and value not in (field.default, other):
      raise errors.UserError(
        f'{field.name} is {value}, but {source} was made with {other}; leave'
        f' {field.name} out, or discover anew'
      )
