"""The size of the Y-Net and its cubes, as flags of a benchmark."""

from absl import flags


class NetworkFlags:
  """Flags --size, --words, --base_filters, --head_filters, --head_units."""

  def __init__(self):
    """Defines the flags; the defaults are the published network."""
    self._size = flags.DEFINE_list('size', ['64', '64', '32'], 'Voxels X,Y,Z.')
    self._counts = {
      argument: flags.DEFINE_integer(name, default, text, lower_bound=1)
      for argument, name, default, text in (
        ('num_words', 'words', 44, 'Words.'),
        ('base_filters', 'base_filters', 32, 'Filters of the first block.'),
        ('head_filters', 'head_filters', 512, 'Filters of the head.'),
        ('head_units', 'head_units', 1024, 'Units of the head.'),
      )
    }

  @property
  def size(self) -> list[int]:
    """Voxels of a cube along x, y and z."""
    return [int(side) for side in self._size.value]

  @property
  def network(self) -> dict[str, int]:
    """Arguments of the networks."""
    return {name: holder.value for name, holder in self._counts.items()}
