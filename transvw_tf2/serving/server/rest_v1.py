"""Messages of TensorFlow Serving's REST protocol, which KServe leaves open.

`instances` holds rows, `inputs` columns; strings are {"b64": ...} or text.
"""

import base64
import binascii

import numpy as np
from tensorflow.core.framework import types_pb2

from transvw_tf2.serving.server import request_errors
from transvw_tf2.serving.server import served_model
from transvw_tf2.serving.server import validation

VERSION = '1'  # a SavedModel of ours has no version of its own


def decode_rows(
  rows, signature: served_model.Signature
) -> list[dict[str, np.ndarray] | request_errors.RequestError]:
  """Returns for each of `instances` its checked tensors, or what is wrong.

  Raises:
    request_errors.RequestError: `rows` is not a list, or empty.
  """
  if not isinstance(rows, list) or not rows:
    raise request_errors.RequestError(
      'instances is empty or not a list, wanted a list of at least one item'
    )
  items = []
  for row in rows:
    try:
      items.append(_decode_row(row, signature))
    except request_errors.RequestError as error:
      items.append(error)
  return items


def decode_columns(
  columns, signature: served_model.Signature
) -> list[dict[str, np.ndarray]]:
  """Returns for each item of `inputs` its checked tensors.

  Raises:
    request_errors.RequestError: something is wrong with the columns or an item.
  """
  named = _named(columns, signature)
  arrays = {
    name: _to_array(value, signature.inputs[name])
    for name, value in named.items()
  }
  return validation.split_items(arrays, signature)


def encode_rows(results: list) -> dict:
  """Returns the message that answers `instances`.

  Args:
    results: for each item its outputs by name, or an exception, which becomes
      {"error": text} in its place.
  """
  return {'predictions': [_encode_row(one) for one in results]}


def encode_columns(results: list[dict]) -> dict:
  """Returns the message that answers `inputs`; all results are outputs."""
  columns = {
    name: [_encode(name, one[name]) for one in results] for name in results[0]
  }
  return {'outputs': _unnamed(columns)}


def status() -> list[dict]:
  """Returns `model_version_status` of a model that is loaded."""
  return [
    {
      'version': VERSION,
      'state': 'AVAILABLE',
      'status': {'error_code': 'OK', 'error_message': ''},
    }
  ]


def metadata(name: str, model: served_model.ServedModel) -> dict:
  """Returns the answer to `/metadata`, with transvw_model.json in it."""
  signature_def = {
    one.name: {
      'inputs': _describe(one.inputs),
      'outputs': _describe(one.outputs),
      'method_name': 'tensorflow/serving/predict',
    }
    for one in model.signatures.values()
  }
  return {
    'model_spec': {'name': name, 'signature_name': '', 'version': VERSION},
    'metadata': {
      'signature_def': {'signature_def': signature_def},
      'transvw_model': model.description,
    },
  }


def _decode_row(row, signature):
  item = {
    name: _to_array(value, signature.inputs[name])
    for name, value in _named(row, signature).items()
  }
  for name, value in item.items():
    validation.check_item(value, signature.inputs[name])
  return item


def _named(value, signature):
  """Returns values by the names of the inputs; a single one needs no name."""
  names = list(signature.inputs)
  bare = not isinstance(value, dict) or set(value) == {'b64'}
  if bare and len(names) == 1:
    return {names[0]: value}
  given = value if isinstance(value, dict) else {}
  validation.check_names(given, signature.inputs)
  return given


def _to_array(value, tensor):
  if tensor.dtype != object:
    return validation.to_numbers(value, tensor)
  try:
    strings = _to_strings(value, tensor)
  except RecursionError as error:
    raise request_errors.RequestError(
      f'{tensor.name} holds lists within lists without end, wanted an array of'
      ' strings'
    ) from error
  if not isinstance(strings, list):
    array = np.empty((), object)
    array[()] = strings
    return array
  try:
    return np.array(strings, object)
  except ValueError as error:
    raise request_errors.RequestError(
      f'{tensor.name} is ragged, wanted an array of strings'
    ) from error


def _to_strings(value, tensor):
  """Decodes the strings of nested lists into bytes."""
  if isinstance(value, list):
    return [_to_strings(one, tensor) for one in value]
  try:
    if isinstance(value, str):
      return value.encode()
    if isinstance(value, dict) and isinstance(value.get('b64'), str):
      return base64.b64decode(value['b64'], validate=True)
  except (binascii.Error, ValueError) as error:
    raise request_errors.RequestError(
      f'{tensor.name} is not good base64: {error}'
    ) from error
  raise request_errors.RequestError(
    f'{tensor.name} holds something else than strings, wanted {{"b64": "..."}}'
  )


def _encode_row(result):
  if isinstance(result, Exception):
    return {'error': str(result)}
  return _unnamed({name: _encode(name, one) for name, one in result.items()})


def _unnamed(values):
  return next(iter(values.values())) if len(values) == 1 else values


def _encode(name, value):
  """Returns what JSON holds of an output of one item."""
  value = value if isinstance(value, bytes) else np.asarray(value).tolist()
  return _encode_strings(name, value)


def _encode_strings(name, value):
  if isinstance(value, list) and value and isinstance(value[0], (list, bytes)):
    return [_encode_strings(name, one) for one in value]
  if not isinstance(value, bytes):
    return value
  if name.endswith('_bytes'):  # so TensorFlow Serving tells bytes from text
    return {'b64': base64.b64encode(value).decode()}
  return value.decode(errors='replace')


def _describe(tensors):
  return {
    one.name: {
      'dtype': types_pb2.DataType.Name(one.tf_dtype.as_datatype_enum),
      'tensor_shape': {
        'dim': [
          {'size': str(-1 if side is None else side), 'name': ''}
          for side in (None, *one.shape)
        ],
        'unknown_rank': False,
      },
      'name': one.name,
    }
    for one in tensors.values()
  }
