"""An exported model as the server sees it: signatures and their tensors."""

from collections.abc import Callable
import dataclasses
import json
import math
import os

from absl import logging
import numpy as np
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2.serving import encoders
from transvw_tf2.serving import signatures
from transvw_tf2.serving.server import request_errors

_DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY


@dataclasses.dataclass(frozen=True)
class Tensor:
  """An input or output of a signature.

  Attributes:
    name: within the signature.
    tf_dtype: of TensorFlow.
    dtype: of NumPy; object for strings.
    shape: of one item, without the axis of the batch; None where free.
    item_bytes: length of one string where it is known, else None.
  """

  name: str
  tf_dtype: tf.DType
  dtype: np.dtype
  shape: tuple[int | None, ...]
  item_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Signature:
  """A function of batches; `inputs` and `outputs` are Tensors by name."""

  name: str
  function: Callable
  inputs: dict[str, Tensor]
  outputs: dict[str, Tensor]


class ServedModel:
  """A SavedModel whose signatures map batches to batches.

  Attributes:
    signatures: dict of Signature by name; those without an axis for the batch
      are left out, with a warning.
    default: name of the signature that a request without one gets.
    description: what transvw_model.json says, empty where it is missing.
  """

  def __init__(self, path: str):
    """Loads the model.

    Raises:
      errors.UserError: `path` is no SavedModel, or none of its signatures can
        be served.
    """
    # The functions die with what `load` returns, so it is kept.
    self._loaded = encoders.load_saved_model(
      path, 'pass the --output of transvw_tf2.export'
    )
    self.description = _read_description(path)
    self.signatures = {}
    for name, function in sorted(self._loaded.signatures.items()):
      signature = _signature(name, function, _volume_bytes(self.description))
      if signature is None:
        logging.warning('signature %s is not served: it has no batch', name)
      else:
        self.signatures[name] = signature
    if not self.signatures:
      raise errors.UserError(
        f'model {path!r} has no signature that takes batches: pass the --output'
        ' of transvw_tf2.export'
      )
    names = list(self.signatures)
    self.default = _DEFAULT if _DEFAULT in names else names[0]

  def signature(self, name: str | None) -> Signature:
    """Returns a signature, the default one for None.

    Raises:
      request_errors.RequestError: there is none of that name.
    """
    name = self.default if name is None else name
    if not isinstance(name, str) or name not in self.signatures:
      raise request_errors.RequestError(
        f'signature_name is {str(name)[:80]!r}, wanted one of '
        f'{", ".join(self.signatures)}'
      )
    return self.signatures[name]

  def run(
    self, name: str, items: list[dict[str, np.ndarray]]
  ) -> list[dict[str, np.ndarray] | Exception]:
    """Runs a signature on items, all in one call if that goes well.

    Args:
      name: of the signature.
      items: checked tensors by name, each of the shape of one item.

    Returns:
      For each item its outputs by name, or what the model raised. Where the
      call fails each item is tried alone, so that one fails no other.
    """
    try:
      return self._call(self.signatures[name], items)
    # The latter where items differ in sides that are free.
    except (tf.errors.OpError, ValueError) as error:
      if len(items) == 1:
        return [error]
    return [self.run(name, [item])[0] for item in items]

  def _call(self, signature, items):
    inputs = {
      name: tf.constant(np.stack([item[name] for item in items]), one.tf_dtype)
      for name, one in signature.inputs.items()
    }
    outputs = signature.function(**inputs)
    outputs = {name: value.numpy() for name, value in outputs.items()}
    return [
      {name: value[at, ...] for name, value in outputs.items()}
      for at in range(len(items))
    ]


def _read_description(path):
  description = _read_json(path)
  shape = _volume_shape(description) if isinstance(description, dict) else 0
  if shape is not None and not (
    isinstance(shape, list)
    and len(shape) == 3
    and all(type(side) is int and side > 0 for side in shape)
  ):
    raise errors.UserError(
      f'{signatures.METADATA_FILE} of {path!r} describes no model, wanted an'
      ' object with the three sides of a volume: export the model again'
    )
  return description


def _read_json(path):
  try:
    with open(
      os.path.join(path, signatures.METADATA_FILE), encoding='utf-8'
    ) as file:
      return json.load(file)
  except FileNotFoundError:
    return {}
  except (OSError, ValueError, RecursionError) as error:
    raise errors.UserError(
      f'{signatures.METADATA_FILE} of {path!r} cannot be read ({error}): '
      'export the model again'
    ) from error


def _volume_shape(description):
  return description.get('cube_shape') or description.get('thumbnail_shape')


def _volume_bytes(description):
  shape = _volume_shape(description)
  return shape and 2 * math.prod(shape)


def _signature(name, function, volume_bytes):
  """Returns the Signature of a function, None where it has no batch."""
  _, inputs = function.structured_input_signature
  inputs = _tensors(inputs, volume_bytes)
  outputs = _tensors(function.structured_outputs, None)
  if not inputs or not outputs:
    return None
  return Signature(name, function, inputs, outputs)


def _tensors(specs, volume_bytes):
  """Returns Tensors by name, none where one has no free first axis."""
  tensors = {}
  for name, spec in specs.items():
    if spec.shape.rank in (None, 0) or spec.shape[0] is not None:
      return {}
    is_string = spec.dtype == tf.string
    tensors[name] = Tensor(
      name=name,
      tf_dtype=spec.dtype,
      dtype=np.dtype(object if is_string else spec.dtype.as_numpy_dtype),
      shape=tuple(spec.shape[1:]),
      # The contract of `bytes`: the voxels of one volume as int16.
      item_bytes=volume_bytes if name == signatures.BYTES else None,
    )
  return tensors
