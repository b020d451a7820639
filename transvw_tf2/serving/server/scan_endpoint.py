"""The endpoint that embeds a whole scan: a file goes in, its vectors come out.

POST /v1/models/NAME:embed_scan?stride=32,32,16 with the file as the body.
"""

import asyncio
import errno
import io
import tempfile

import fastapi
from fastapi import responses
import numpy as np
import prometheus_client
from starlette import requests

from transvw_tf2 import errors
from transvw_tf2.serving import embed
from transvw_tf2.serving import signatures
from transvw_tf2.serving.server import kserve_model
from transvw_tf2.serving.server import request_errors
from transvw_tf2.serving.server import scan_uploads
from transvw_tf2.serving.server import settings as settings_lib

VERB = ':embed_scan'

_NPZ = 'application/x-npz'
_NOT_FILES = ('multipart/', 'application/json')
_SILENCE_S = 30.0  # a stalled upload has one of the few places of scans
_SCANS = prometheus_client.Counter('transvw_scans', 'Scans embedded.')


class ScanEndpoint:
  """Embeds scans, a few at once, through the queue of the model."""

  def __init__(
    self, model: kserve_model.BatchingModel, settings: settings_lib.Settings
  ):
    """Initialises the endpoint.

    Args:
      model: that has the signature embed_cubes_int16, or all are refused.
      settings: limits.
    """
    self._model = model
    self._settings = settings
    self._under_way = 0

  async def embed(self, name: str, request: fastapi.Request):
    """Answers a request with places, embeddings and their mean.

    Raises:
      request_errors.RequestError: the request or the scan is wrong, or too many
        are under way.
    """
    shape = self._cube_shape(name)
    stride = _stride(request.query_params.get('stride'), shape)
    _check_type(request.headers.get('content-type', ''))
    if self._under_way >= self._settings.max_scans:
      raise request_errors.RequestError(
        f'{self._under_way} scans are worked on: try again later', 429, 5
      )
    self._under_way += 1
    try:
      async with asyncio.timeout(self._settings.scan_timeout_s):
        result = await self._embed(request, shape, stride)
    except TimeoutError as error:
      raise request_errors.RequestError(
        f'the scan took more than {self._settings.scan_timeout_s:g} s: a larger'
        ' stride makes fewer cubes',
        504,
      ) from error
    except OSError as error:
      if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise
      raise request_errors.RequestError(
        'the server has no room for the scan: try again later', 507
      ) from error
    except requests.ClientDisconnect:
      return fastapi.Response(status_code=499)  # nobody reads it
    finally:
      self._under_way -= 1
    _SCANS.inc()
    return await asyncio.to_thread(
      _answer, result, request.headers.get('accept', '')
    )

  def _cube_shape(self, name):
    model = self._model.model
    signature = model.signatures.get(signatures.EMBED_CUBES_INT16)
    if name != self._model.name or signature is None:
      raise request_errors.RequestError(
        f'there is no model {name[:80]!r} that embeds cubes of scans', 404
      )
    return signature.inputs[signatures.CUBES].shape[:3]

  async def _embed(self, request, shape, stride):
    file = await self._receive(request)
    reading = asyncio.get_running_loop().run_in_executor(
      None,
      scan_uploads.read,
      file,
      shape,
      self._settings.max_unpacked_mb * settings_lib.MIB,
    )
    # Not cancelled with the request: the thread tidies up behind itself.
    hu = await asyncio.shield(reading)
    try:
      places = embed.cube_places(
        hu.shape, shape, stride, most=self._settings.max_scan_cubes
      )
    except errors.UserError as error:
      raise request_errors.RequestError(str(error)) from error
    rows = []
    batches = embed.cut_batches(hu, places, shape, self._settings.max_batch)
    for cubes in batches:
      if await request.is_disconnected():
        raise requests.ClientDisconnect()
      rows.extend(await self._embed_cubes(cubes))
    embeddings = np.stack(rows)
    mean = embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
    return embed.ScanEmbedding(places, embeddings, mean)

  async def _embed_cubes(self, cubes):
    items = [{signatures.CUBES: cube[..., np.newaxis]} for cube in cubes]
    size = self._settings.max_queue
    rows = []
    while items:
      # The scan is in already, so it waits.
      results = await self._model.run(
        signatures.EMBED_CUBES_INT16, items[:size], wait=True
      )
      for result in results:
        if isinstance(result, Exception):
          raise result
        rows.append(result[signatures.EMBEDDING])
      del items[:size]
    return rows

  async def _receive(self, request):
    """Returns the body as a file without a name, which cannot be left over."""
    most, received = self._settings.max_scan_mb * settings_lib.MIB, 0
    file = tempfile.TemporaryFile()  # noqa: SIM115, the reader closes it
    try:
      async for block in _blocks(request):
        received += len(block)
        if received > most:
          raise request_errors.RequestError(
            f'the scan has more than {most} bytes, wanted at most those', 413
          )
        file.write(block)
    except BaseException:
      file.close()
      raise
    return file


async def _blocks(request):
  """Yields the blocks of a body, and refuses one that has stopped to come."""
  blocks = request.stream()
  while True:
    try:
      async with asyncio.timeout(_SILENCE_S):
        block = await anext(blocks)
    except StopAsyncIteration:
      return
    except TimeoutError as error:
      raise request_errors.RequestError(
        f'nothing of the scan came for {_SILENCE_S:g} s: send it again', 408
      ) from error
    yield block


def _stride(text, shape):
  if text is None:
    return shape
  try:
    stride = embed.parse_stride(text.split(','))
    # A scan of one cube more would do, to have the stride checked early.
    embed.cube_places(shape, shape, stride)
  except errors.UserError as error:
    raise request_errors.RequestError(
      str(error).partition(': change --')[0]
    ) from error
  return stride


def _check_type(kind):
  if kind.lower().startswith(_NOT_FILES):
    raise request_errors.RequestError(
      f'Content-Type is {kind[:80]!r}, wanted application/octet-stream: the '
      'bytes of one file are the body',
      415,
    )


def _answer(result, accept):
  """Returns JSON, or .npz for those who accept it."""
  arrays = {
    'places': result.places,
    'embeddings': result.embeddings,
    'mean': result.mean,
  }
  if _NPZ not in accept:
    return responses.JSONResponse(
      {name: array.tolist() for name, array in arrays.items()}
    )
  file = io.BytesIO()
  np.savez(file, **arrays)
  return fastapi.Response(file.getvalue(), media_type=_NPZ)
