"""Tensors of the Open Inference Protocol (V2), of REST and of gRPC."""

import struct
import uuid

from kserve import InferInput
from kserve import InferOutput
from kserve import InferRequest
from kserve import InferResponse
from kserve.protocol import infer_type
from kserve.utils import numpy_codec
import numpy as np
import orjson

from transvw_tf2.serving.server import request_errors
from transvw_tf2.serving.server import served_model
from transvw_tf2.serving.server import validation


def signature_name(request: InferRequest) -> str | None:
  """Returns the parameter `signature_name` of a request, None without one."""
  parameters = infer_type.to_http_parameters(request.parameters or {})
  return parameters.get('signature_name') or None


def decode(
  request: InferRequest, signature: served_model.Signature
) -> list[dict[str, np.ndarray]]:
  """Returns for each item of a request its checked tensors.

  Raises:
    request_errors.RequestError: the inputs do not fit the signature.
  """
  given = {one.name: one for one in request.inputs}
  if len(given) != len(request.inputs):
    raise request_errors.RequestError('two inputs have the same name')
  validation.check_names(given, signature.inputs)
  outputs = request.request_outputs or ()
  if len({one.name for one in outputs}) != len(outputs):
    raise request_errors.RequestError('two outputs have the same name')
  for output in outputs:
    if output.name not in signature.outputs:
      raise request_errors.RequestError(
        f'output {output.name[:80]!r} is not one of '
        f'{", ".join(signature.outputs)}'
      )
  arrays = {
    name: _to_array(one, signature.inputs[name]) for name, one in given.items()
  }
  return validation.split_items(arrays, signature)


def encode(request: InferRequest, name: str, results: list[dict]):
  """Returns the InferResponse to a request.

  Args:
    request: decides the outputs and whether they are binary.
    name: of the model.
    results: for each item its outputs by name.
  """
  wanted = request.request_outputs and [
    one.name for one in request.request_outputs
  ]
  arrays = {
    output: np.stack([one[output] for one in results])
    for output in wanted or results[0]
  }
  binary = request.use_binary_outputs
  if request.from_grpc:
    # KServe's lists hold text alone; one binary output makes all of them so.
    binary |= any(array.dtype == object for array in arrays.values())
  outputs = []
  for output, array in arrays.items():
    kind = numpy_codec.from_np_dtype(array.dtype)
    outputs.append(InferOutput(output, list(array.shape), kind))
    # Set here, for KServe's to_grpc fails on an output given as an array.
    outputs[-1].set_data_from_numpy(array, binary_data=bool(binary))
  return InferResponse(
    response_id=str(request.id or uuid.uuid4()),
    model_name=name,
    infer_outputs=outputs,
    use_binary_outputs=request.use_binary_outputs,
    requested_outputs=request.request_outputs,
  )


def describe(tensors: dict[str, served_model.Tensor]) -> list[dict]:
  """Returns the metadata of tensors."""
  return [
    {
      'name': one.name,
      'datatype': numpy_codec.from_np_dtype(one.dtype),
      'shape': [-1 if side is None else side for side in (None, *one.shape)],
    }
    for one in tensors.values()
  ]


def from_bytes(body: bytes, json_length: str, name: str) -> InferRequest:
  """Decodes a REST request, which may have binary tensors behind its JSON.

  InferRequest.from_bytes turns the tensors into lists and refuses strings that
  are not text, such as voxels; here they stay as they are.

  Args:
    body: the JSON and then the tensors.
    json_length: the header Inference-Header-Content-Length.
    name: of the model.

  Raises:
    request_errors.RequestError: the body is not what it says.
  """
  # Not so long that Python refuses to make a number of it.
  is_number = json_length.isdecimal() and len(json_length) < 20
  if not is_number or int(json_length) > len(body):
    raise request_errors.RequestError(
      f'Inference-Header-Content-Length is {json_length[:20]!r}, wanted at '
      f'most the {len(body)} bytes of the body'
    )
  start = int(json_length)
  inputs, raw_inputs = [], []
  try:
    message = orjson.loads(body[:start])
    parts = [message, *message['inputs'], *(message.get('outputs') or ())]
    if not all(isinstance(one.get('parameters') or {}, dict) for one in parts):
      raise ValueError('parameters are not an object')
    if not all(isinstance(one['name'], str) for one in parts[1:]):
      raise ValueError('a name is not text')
    for one in message['inputs']:
      parameters = one.get('parameters') or {}
      size, raw = parameters.get('binary_data_size'), None
      if size is None and not isinstance(one.get('data'), list):
        raise ValueError(f'{one["name"]} has no list of data')
      if size is not None:
        raw = body[start : start + size]
        start += size
        if size < 0 or start > len(body):
          raise ValueError(f'the body ends before {one["name"]} does')
      inputs.append(
        InferInput(
          one['name'],
          one['shape'],
          one['datatype'],
          one.get('data'),
          parameters,
        )
      )
      raw_inputs.append(raw)
    outputs = [
      infer_type.RequestedOutput(one['name'], one.get('parameters'))
      for one in message.get('outputs') or ()
    ]
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise request_errors.RequestError(
      f'the request cannot be decoded: {error!r}'
    ) from error
  if start != len(body):
    raise request_errors.RequestError(
      f'the body has {len(body)} bytes, but its tensors end at {start}'
    )
  return InferRequest(
    model_name=name,
    infer_inputs=inputs,
    request_id=message.get('id'),
    raw_inputs=raw_inputs,
    parameters=message.get('parameters'),
    request_outputs=outputs or None,
  )


def _to_array(given: InferInput, tensor: served_model.Tensor) -> np.ndarray:
  """Returns an input as an array with the axis of the batch."""
  want = numpy_codec.from_np_dtype(tensor.dtype)
  if given.datatype != want:
    raise request_errors.RequestError(
      f'{tensor.name} is {given.datatype[:20]}, wanted {want}: change it, or '
      'the parameter signature_name'
    )
  try:
    # A tensor that came in binary has no data, or an empty list of them.
    array = _from_list(given.data, tensor) if given.data else given.as_numpy()
    return array.reshape(_sides(given, tensor))
  except (ValueError, TypeError, struct.error) as error:
    raise request_errors.RequestError(
      f'{tensor.name} does not hold {want} of shape {str(given.shape)[:80]}'
    ) from error


def _sides(given, tensor):
  sides = given.shape
  whole = isinstance(sides, list) and all(
    isinstance(side, int) and side > 0 for side in sides
  )
  if not whole or len(sides) != 1 + len(tensor.shape):
    raise request_errors.RequestError(
      f'{tensor.name} has shape {str(sides)[:80]}, wanted '
      f'{describe({tensor.name: tensor})[0]["shape"]}'
    )
  return sides


def _from_list(data, tensor):
  if tensor.dtype != object:
    return validation.to_numbers(data, tensor)
  array = np.empty(len(data), object)
  for at, one in enumerate(data):
    if not isinstance(one, (str, bytes)):
      raise ValueError('not a string')
    array[at] = one.encode() if isinstance(one, str) else one
  return array
