"""Loads .keras files, which may come from elsewhere."""

import io
import json
import zipfile

import h5py
import keras

from transvw_tf2 import errors
from transvw_tf2 import file_size
from transvw_tf2 import h5_arrays
from transvw_tf2 import models  # noqa: F401, registers all our networks

SUFFIX = '.keras'
_CONFIG = 'config.json'
_WEIGHTS = 'model.weights.h5'
# As our classes are registered.
_PACKAGE = 'transvw_tf2>'
_SIZES = ('base_filters', 'depth', 'head_filters', 'head_units', 'num_words')
_CLASSES = 'num_classes'
_PRECISION = 'DTypePolicy'
# Of a file that could name any number of layers.
_MAX_DEPTH = 12


def load_network(path: str) -> keras.Model:
  """Loads a network of this package.

  Keras makes whatever class a file names, also within its settings, and as
  large as it says: only our networks are made, and only of a size whose weights
  the file can hold.

  Raises:
    errors.UserError: it is another network, not safe to load, or damaged.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      file_size.check(path, sum(one.file_size for one in archive.infolist()))
      config = json.loads(archive.read(_CONFIG))
      weights = archive.read(_WEIGHTS)
    if _is_ours(config):
      _check_plain(config['config'])
      file_size.check(path, _least_bytes(config['config']))
      _check_weights(path, weights)
      model = keras.saving.load_model(path, compile=False)
      if not model.weights:
        # Keras leaves them in the file then, without an error.
        raise ValueError(f'its {_CONFIG} has no build_config for the weights')
      return model
  except errors.UserError:
    raise
  except Exception as error:  # Keras raises many kinds for a broken file
    raise errors.UserError(
      f'{path} cannot be loaded ({" ".join(str(error).split())[:200]}): wanted'
      ' a network of this package, in a file named .keras'
    ) from error
  raise errors.UserError(
    f'{path} holds a {str(config.get("class_name"))[:80]}, wanted a network of'
    ' transvw_tf2.models'
  )


def _is_ours(config: dict) -> bool:
  """Returns whether Keras would make a network of this package, and no other.

  A name that is not registered makes it go by the module and class instead, and
  some classes it makes whatever name is registered.
  """
  name = str(config.get('registered_name'))
  kind = keras.saving.get_registered_object(name)
  return (
    name.startswith(_PACKAGE)
    and isinstance(kind, type)
    and issubclass(kind, keras.Model)
    and config.get('class_name') == kind.__name__
  )


def _check_weights(path: str, content: bytes) -> None:
  """Checks that arrays take no more memory than the file."""
  with h5py.File(io.BytesIO(content), 'r') as file:
    for dataset in h5_arrays.find(file, path).values():
      h5_arrays.check_unpacked(dataset, path)


def _check_plain(settings: dict) -> None:
  """Checks that no setting is anything that Keras would make an object of.

  Raises:
    ValueError: one is.
  """
  precision = settings.get('dtype')
  if (
    isinstance(precision, dict)
    and precision['class_name'] == _PRECISION
    and precision['registered_name'] is None
  ):
    precision = precision['config']['name']
  for name, value in {**settings, 'dtype': precision}.items():
    if not (value is None or isinstance(value, str | int | float)):
      raise ValueError(f'{name} is {value!r:.80}')


def _least_bytes(settings: dict) -> int:
  """Returns bytes that the weights of a network take at least.

  Raises:
    ValueError: a setting is no size.
  """
  sizes = {name: settings.get(name) or 0 for name in _SIZES}
  sizes['num_words'] = sizes['num_words'] or settings.get(_CLASSES) or 0
  sizes['output_channels'] = settings.get('output_channels') or 1
  for name, size in sizes.items():
    if not isinstance(size, int) or size < 0:
      raise ValueError(f'{name} is {size!r:.80}')
  if not sizes['base_filters']:
    raise ValueError('base_filters is not there')  # Keras would take 32
  if not 1 <= sizes['depth'] <= _MAX_DEPTH:
    raise ValueError(f'depth is {sizes["depth"]}, wanted 1 to {_MAX_DEPTH}')
  width = sizes['base_filters'] << sizes['depth']
  if not sizes['num_words']:
    # Then there is no head, whatever its sizes would be.
    sizes |= {'head_filters': 0, 'head_units': 0}
  before_words = sizes['head_units'] or sizes['head_filters'] or width
  return 4 * (
    27 * width * (width // 2)  # the last convolution of the encoder
    + 27 * width * sizes['head_filters']
    + (sizes['head_filters'] or width) * sizes['head_units']
    + before_words * sizes['num_words']
    + 2 * sizes['base_filters'] * (sizes['output_channels'] - 1)
  )
