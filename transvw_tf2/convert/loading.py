"""Makes the model that `transvw_tf2.convert.load` returns."""

from collections.abc import Collection

import keras

from transvw_tf2 import errors
from transvw_tf2.convert import files
from transvw_tf2.convert import network as network_lib
from transvw_tf2.models import restoration_net
from transvw_tf2.models import torch_variant
from transvw_tf2.models import unet3d


def load(
  path: str, batch_statistics: bool, allow_missing: Collection[str]
) -> keras.Model:
  """Loads a network; see transvw_tf2.convert.load."""
  source = files.read(path)
  model = source.model
  if model is None:
    model = network_lib.build(network_lib.fit(source, allow_missing))
  else:
    network_lib.by_name(source)  # checks the numbers
  if batch_statistics:
    if not isinstance(model, torch_variant.TorchVisualWordNet):
      raise errors.UserError(
        f'{path} is not of the PyTorch release, which alone normalises by the'
        ' statistics of a batch: leave batch_statistics off'
      )
    return _rebuild(
      torch_variant.TorchVisualWordNet, model, batch_statistics=True
    )
  if type(model) is unet3d.UNet3D:
    return _rebuild(restoration_net.RestorationNet, model)
  return model


def _rebuild(kind, model, **changes) -> keras.Model:
  """Returns a model of a kind with the configuration and weights of another."""
  copy = kind.from_config(model.get_config() | changes)
  copy.build((None, None, None, None, 1))
  copy.set_weights(model.get_weights())
  return copy
