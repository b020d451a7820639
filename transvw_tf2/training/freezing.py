"""Keeps pre-trained layers as they are, for good or for the first epochs."""

from collections.abc import Sequence
import importlib.util  # noqa: F401, gin 0.5 uses it without importing it

import gin
import keras

from transvw_tf2 import errors
from transvw_tf2.models import unet3d


@gin.configurable(module='training')
class Freezing:
  """Which layers of a network do not learn, by epoch.

  A frozen block also keeps its batch norm: it normalises by moving statistics.
  """

  def __init__(self, parts: str | Sequence[str] = (), unfreeze_epochs: int = 0):
    """Initialises the rule.

    Args:
      parts: of the network, one or several, as `model.parts` names them;
        'encoder' leaves the dense layer of a classifier: a linear probe.
      unfreeze_epochs: 0 freezes them for good. Else one more layer learns every
        so many epochs, the nearest to the output first (gradual unfreezing,
        Howard and Ruder, arXiv 1801.06146, section 3.3).

    Raises:
      UserError: a number below 0.
    """
    if unfreeze_epochs < 0:
      raise errors.UserError(
        f'Freezing.unfreeze_epochs is {unfreeze_epochs}, wanted 0 or more'
      )
    self._parts = (parts,) if isinstance(parts, str) else tuple(parts)
    self._unfreeze_epochs = unfreeze_epochs

  def apply(self, model: keras.Model, epoch: int) -> bool:
    """Freezes what is frozen in an epoch, from 1, and nothing else.

    Returns:
      Whether that differs from what was frozen before.

    Raises:
      UserError: a part that the network does not have, or nothing would learn.
    """
    if not self._parts:
      return False
    layers = self._layers(model)
    learning = 0
    if self._unfreeze_epochs:
      learning = (epoch - 1) // self._unfreeze_epochs
    changed = False
    for place, layer in enumerate(layers):
      trainable = place < learning
      changed |= layer.trainable != trainable
      layer.trainable = trainable
    if not model.trainable_variables:
      raise errors.UserError(
        f'Freezing.parts {self._parts} is all of the network, wanted less'
      )
    return changed

  def _layers(self, model) -> list[keras.layers.Layer]:
    """Returns the layers of the frozen parts, nearest to the output first."""
    found = []
    for name in reversed(model.parts):
      if name in self._parts:
        for layer in reversed(model.parts[name]):
          found += _divide(layer)
    missing = set(self._parts) - set(model.parts)
    if missing:
      raise errors.UserError(
        f'Freezing.parts has {sorted(missing)}, wanted some of'
        f' {", ".join(model.parts)}'
      )
    return found


def _divide(layer) -> list[keras.layers.Layer]:
  if isinstance(layer, unet3d.Encoder):
    return layer.conv_blocks[::-1]
  if isinstance(layer, unet3d.Decoder):
    return layer.levels[::-1]
  return [layer]
