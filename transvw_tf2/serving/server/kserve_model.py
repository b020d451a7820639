"""The model and the data plane that KServe's endpoints call."""

import asyncio
import json
import re

from absl import logging
import kserve
from kserve.protocol import dataplane
from kserve.protocol import model_repository_extension
import tensorflow as tf

from transvw_tf2.serving.server import batch_queue
from transvw_tf2.serving.server import infer_v2
from transvw_tf2.serving.server import request_errors
from transvw_tf2.serving.server import rest_v1
from transvw_tf2.serving.server import served_model

_JSON_LENGTH = 'inference-header-content-length'

# TensorFlow Serving does not look at the type, and curl sends the form's.
_JSON_TYPES = frozenset(
  ('', 'application/json', 'application/x-www-form-urlencoded')
  + ('application/octet-stream', 'application/cloudevents+json')
)


class BatchingModel(kserve.Model):
  """A model that answers both protocols through a queue."""

  def __init__(
    self,
    name: str,
    model: served_model.ServedModel,
    queue: batch_queue.BatchQueue,
    timeout_s: float,
  ):
    """Initialises the model, ready.

    Args:
      name: in paths and messages.
      model: what the queue runs.
      queue: keys are names of signatures, values items.
      timeout_s: seconds that a request of predict waits for its answer.
    """
    super().__init__(name)
    self.model = model
    self._queue = queue
    self._timeout_s = timeout_s
    self.ready = True

  def get_input_types(self) -> list[dict]:
    """Returns the inputs of the default signature, for V2 metadata."""
    return infer_v2.describe(self.model.signature(None).inputs)

  def get_output_types(self) -> list[dict]:
    """Returns the outputs of the default signature, for V2 metadata."""
    return infer_v2.describe(self.model.signature(None).outputs)

  async def predict(self, payload, headers=None, response_headers=None):
    """Answers a V1 message (a dict) or a V2 one (an InferRequest).

    Raises:
      request_errors.RequestError: the request is wrong, the queue full, the
        time over, or the model failed.
    """
    del headers, response_headers
    if isinstance(payload, kserve.InferRequest):
      return await self._predict_v2(payload)
    if not isinstance(payload, dict):
      raise request_errors.RequestError(
        'the body is not a JSON object, wanted one with instances or inputs'
      )
    signature = self.model.signature(payload.get('signature_name'))
    if ('instances' in payload) == ('inputs' in payload):
      raise request_errors.RequestError(
        'wanted either instances (rows) or inputs (columns) in the request'
      )
    self._check_count(payload.get('instances', payload.get('inputs')))
    if 'instances' in payload:
      return await self._predict_rows(payload['instances'], signature)
    items = await asyncio.to_thread(
      rest_v1.decode_columns, payload['inputs'], signature
    )
    results = await self.run(signature.name, items, self._timeout_s)
    return await asyncio.to_thread(rest_v1.encode_columns, _all_good(results))

  async def run(
    self,
    name: str,
    items: list,
    timeout_s: float | None = None,
    *,
    wait: bool = False,
  ) -> list:
    """Returns the outputs of each item, or what is wrong with it.

    Args:
      name: of the signature.
      items: its inputs by name, for each item.
      timeout_s: seconds to wait; None where the caller has a limit of its own.
      wait: for a place in the queue, rather than be refused.

    Raises:
      request_errors.RequestError: the queue is full, or the time over.
    """
    try:
      async with asyncio.timeout(timeout_s):
        results = await self._queue.submit(name, items, wait=wait)
    except TimeoutError as error:
      raise request_errors.RequestError(
        f'the model did not answer within {timeout_s:g} s', 504
      ) from error
    return [_explain(one) for one in results]

  def _check_count(self, rows):
    """Refuses what never fits before it is decoded, which takes longest."""
    for column in rows.values() if isinstance(rows, dict) else [rows]:
      if isinstance(column, list):
        self._queue.check_count(len(column))

  async def _predict_rows(self, rows, signature):
    results = await asyncio.to_thread(rest_v1.decode_rows, rows, signature)
    good = [at for at, one in enumerate(results) if isinstance(one, dict)]
    if good:
      answers = await self.run(
        signature.name, [results[at] for at in good], self._timeout_s
      )
      for at, answer in zip(good, answers, strict=True):
        results[at] = answer
    if not any(isinstance(one, dict) for one in results):
      raise _with_place(results[0], 0)
    return await asyncio.to_thread(rest_v1.encode_rows, results)

  async def _predict_v2(self, request):
    signature = self.model.signature(infer_v2.signature_name(request))
    items = await asyncio.to_thread(infer_v2.decode, request, signature)
    results = await self.run(signature.name, items, self._timeout_s)
    return await asyncio.to_thread(
      infer_v2.encode, request, self.name, _all_good(results)
    )


class DataPlane(dataplane.DataPlane):
  """Decodes what KServe's own does not, and refuses with one clear line."""

  def decode(
    self, body, headers, protocol_version='v1', model_name=None
  ) -> tuple:
    """Decodes the body of a REST request, see dataplane.DataPlane.

    Raises:
      request_errors.RequestError: it cannot be decoded.
    """
    try:
      if protocol_version == 'v2' and isinstance(body, bytes):
        length = _json_length(body, headers)
        return infer_v2.from_bytes(body, length, model_name), {}
      if protocol_version == 'v2':
        return super().decode(body, headers, protocol_version, model_name)
      return self._decode_v1(body, headers)
    except kserve.errors.InvalidInput as error:
      raise request_errors.RequestError(str(error)) from error

  def _decode_v1(self, body, headers):
    kind = _content_type(headers)
    if kind not in _JSON_TYPES:
      raise request_errors.RequestError(
        f'Content-Type is {kind[:80]!r}, wanted application/json', 415
      )
    if kind != 'application/cloudevents+json':
      headers = headers | {'content-type': 'application/json'}
    try:
      return super().decode(body, headers)
    except kserve.errors.InvalidInput:
      # Python and TensorFlow Serving write NaN, which is not JSON; one such
      # item must not fail the others.
      try:
        return json.loads(body), {}
      except (ValueError, RecursionError) as error:
        raise request_errors.RequestError(
          f'the body is not JSON: {error}'
        ) from error


class FixedRepository(model_repository_extension.ModelRepositoryExtension):
  """Refuses to load or unload models at the wish of a client."""

  async def load(self, model_name: str) -> None:
    """Raises request_errors.RequestError."""
    raise _refuse_repository(model_name)

  async def unload(self, model_name: str) -> None:
    """Raises request_errors.RequestError."""
    raise _refuse_repository(model_name)


def _content_type(headers):
  return headers.get('content-type', '').partition(';')[0].strip().lower()


def _json_length(body, headers):
  """Returns the bytes of a V2 body that are JSON, as text of a header."""
  kind = _content_type(headers)
  if _JSON_LENGTH in headers:
    return headers[_JSON_LENGTH]
  if kind != 'application/json' and not kind.endswith('+json'):
    raise request_errors.RequestError(
      'the body is neither application/json nor has it the header '
      'Inference-Header-Content-Length'
    )
  return str(len(body))


def _refuse_repository(name):
  return request_errors.RequestError(
    f'model {name[:80]!r} cannot be loaded or unloaded: start another server',
    403,
  )


def _explain(result):
  """Returns a result; an exception as the RequestError for the client."""
  if isinstance(result, (dict, request_errors.RequestError)):
    return result
  # The rest of the message tells where things lie on this machine.
  asserted = re.search(r'assertion failed: (.*)', str(result))
  if isinstance(result, tf.errors.InvalidArgumentError) and asserted:
    return request_errors.RequestError(
      f'the model refuses the item: {asserted[1]}'
    )
  logging.error('the model failed: %s', result)
  return request_errors.RequestError('the model failed: see its log', 500)


def _with_place(error, at):
  return request_errors.RequestError(
    f'item {at}: {error}', error.status, error.retry_after
  )


def _all_good(results):
  """Returns results that are all outputs, or raises the first that is not."""
  for at, result in enumerate(results):
    if isinstance(result, Exception):
      raise _with_place(result, at)
  return results
