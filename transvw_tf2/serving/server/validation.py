"""Checks the tensors of a request before the model sees them.

What a model raises is an error of the server to KServe, so whatever a client
can do wrong is found here.
"""

from collections.abc import Mapping

import numpy as np

from transvw_tf2.serving.server import request_errors
from transvw_tf2.serving.server import served_model


def to_numbers(value, tensor: served_model.Tensor) -> np.ndarray:
  """Converts nested lists or an array to an array of the dtype of a tensor.

  Args:
    value: from a decoded message.
    tensor: that it is meant for; only its dtype matters.

  Raises:
    request_errors.RequestError: it is ragged, holds something but numbers, or
      numbers that the dtype does not.
  """
  try:
    array = np.asarray(value)
  except (ValueError, OverflowError) as error:
    raise request_errors.RequestError(
      f'{tensor.name} is ragged or nested too deeply, wanted an array'
    ) from error
  if array.dtype.kind not in 'iuf':
    raise request_errors.RequestError(
      f'{tensor.name} holds something else than numbers, wanted {tensor.dtype}'
    )
  if array.dtype == tensor.dtype:
    return array
  if tensor.dtype.kind in 'iu':
    limits = np.iinfo(tensor.dtype)
    fits = array.dtype.kind in 'iu' and (
      not array.size
      or (array.min() >= limits.min and array.max() <= limits.max)
    )
    if not fits:
      raise request_errors.RequestError(
        f'{tensor.name} holds numbers that are not {tensor.dtype}, wanted '
        f'integers from {limits.min} to {limits.max}'
      )
  with np.errstate(over='ignore'):  # becomes infinite, which is found later
    return array.astype(tensor.dtype)


def check_item(value: np.ndarray, tensor: served_model.Tensor) -> None:
  """Checks one item of a tensor, without the axis of the batch.

  Args:
    value: array of the dtype of the tensor; object for strings.
    tensor: what is wanted.

  Raises:
    request_errors.RequestError: wrong shape or length, NaN or infinity.
  """
  fits = len(value.shape) == len(tensor.shape) and all(
    want in (None, side)
    for side, want in zip(value.shape, tensor.shape, strict=True)
  )
  if not fits:
    raise request_errors.RequestError(
      f'{tensor.name} has shape {_by(value.shape)}, wanted {_by(tensor.shape)}'
    )
  if value.dtype.kind == 'f' and not np.isfinite(value).all():
    raise request_errors.RequestError(
      f'{tensor.name} holds NaN or infinite values, wanted finite ones'
    )
  if value.dtype == object and tensor.item_bytes is not None:
    for one in value.ravel():
      if len(one) != tensor.item_bytes:
        raise request_errors.RequestError(
          f'{tensor.name} has {len(one)} bytes, wanted {tensor.item_bytes}: '
          'little-endian int16 HU, [x, y, z] in C order'
        )


def check_names(given: Mapping, wanted: Mapping, what: str = 'inputs') -> None:
  """Checks that two mappings have the same keys.

  Raises:
    request_errors.RequestError: one is missing or not known.
  """
  if set(given) != set(wanted):
    names = ', '.join(sorted(map(str, given))) or 'none'
    raise request_errors.RequestError(
      f'{what} are {names[:200]}, wanted {", ".join(wanted)}'
    )


def split_items(
  arrays: dict[str, np.ndarray], signature: served_model.Signature
) -> list[dict[str, np.ndarray]]:
  """Splits checked columns into items.

  Args:
    arrays: for each input of the signature an array with the axis of the batch.
    signature: that they are meant for.

  Raises:
    request_errors.RequestError: no item, differing numbers of them, or one that
      check_item refuses; the message tells which.
  """
  counts = {len(array) if array.ndim else 0 for array in arrays.values()}
  if len(counts) != 1 or 0 in counts:
    raise request_errors.RequestError(
      f'the inputs hold {sorted(counts)} items, wanted the same number of all, '
      'at least 1'
    )
  items = []
  for at in range(counts.pop()):
    item = {name: array[at : at + 1] for name, array in arrays.items()}
    for name, value in item.items():
      item[name] = value.reshape(value.shape[1:])
      try:
        check_item(item[name], signature.inputs[name])
      except request_errors.RequestError as error:
        raise request_errors.RequestError(f'item {at}: {error}') from error
    items.append(item)
  return items


def _by(sides) -> str:
  return ' x '.join('?' if one is None else str(one) for one in sides) or '1'
