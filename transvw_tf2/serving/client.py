"""A client of transvw_tf2.serve that needs NumPy alone.

Usage, on any machine:
  client = Client('http://gpu-machine:8501', api_key='...')
  vectors = client.embed_cubes(cubes)  # int16 or float (B, 64, 64, 32), HU
  scan = client.embed_scan('scan.mhd', stride=(32, 32, 16))
  scan.places, scan.embeddings, scan.mean

Cubes travel as binary tensors of the Open Inference Protocol, 2 bytes a voxel.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import http.client
import io
import json
import os
import tempfile
import time
from typing import BinaryIO
import urllib.parse
import zipfile

import numpy as np

_KINDS = {
  'FP32': np.dtype('<f4'),
  'FP64': np.dtype('<f8'),
  'INT16': np.dtype('<i2'),
  'INT32': np.dtype('<i4'),
  'INT64': np.dtype('<i8'),
  'UINT8': np.dtype('u1'),
}
_BUSY = (429, 503)


class ServerError(Exception):
  """The server refused a request.

  Attributes:
    status: of HTTP; 4xx tells that the request is wrong, or the queue full.
    reason: one line.
  """

  def __init__(self, status: int, reason: str):
    super().__init__(f'{status}: {reason}')
    self.status = status
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class EmbeddedScan:
  """Embeddings of the cubes of one scan.

  Attributes:
    places: int32 (N, 3), lower corners of the cubes in voxels [x, y, z].
    embeddings: float32 (N, embedding size).
    mean: float32 (embedding size,), over the cubes.
  """

  places: np.ndarray
  embeddings: np.ndarray
  mean: np.ndarray


class Client:
  """Sends cubes and scans to a server, each request on its own connection."""

  def __init__(
    self,
    url: str,
    *,
    api_key: str | None = None,
    model: str = 'transvw',
    timeout_s: float = 1000.0,
    retries: int = 5,
    batch_size: int = 8,
  ):
    """Initialises the client; nothing is sent yet.

    Args:
      url: such as http://127.0.0.1:8501; https where a proxy gives it.
      api_key: of the server, if it wants one.
      model: its name on the server.
      timeout_s: seconds to wait for an answer.
      retries: how often a busy server is asked again, after the seconds that it
        names.
      batch_size: cubes per request.

    Raises:
      ValueError: `url` is not one of http or https.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ('http', 'https') or not parts.hostname:
      raise ValueError(f'url is {url!r}, wanted such as http://127.0.0.1:8501')
    self._parts = parts
    # A key out of a file may end in a new line, which no header holds.
    key = (api_key or '').strip()
    self._headers = {'Authorization': f'Bearer {key}'} if key else {}
    self._model = model
    self._timeout_s = timeout_s
    self._retries = retries
    self._batch_size = batch_size

  def is_ready(self) -> bool:
    """Returns whether the server answers and its model is loaded."""
    try:
      self._send('GET', '/v2/health/ready')
    except (OSError, ServerError):
      return False
    return True

  def metadata(self) -> dict:
    """Returns the signatures and the description of the model.

    Raises:
      ServerError, OSError: there is no answer, or a refusal.
    """
    path = f'/v1/models/{self._model}/metadata'
    return json.loads(self._send('GET', path)[0])['metadata']

  def embed_cubes(self, cubes: np.ndarray) -> np.ndarray:
    """Embeds cubes.

    Args:
      cubes: int16, or floats that are rounded, (B, X, Y, Z) or (B, X, Y, Z, 1),
        HU.

    Returns:
      float32 (B, embedding size).

    Raises:
      ValueError: they have other axes, or NaN or infinite values.
      ServerError, OSError: there is no answer, or a refusal.
    """
    cubes = np.asarray(cubes)
    if cubes.ndim == 4:
      cubes = cubes[..., np.newaxis]
    if cubes.ndim != 5 or not len(cubes):
      raise ValueError(
        f'cubes have shape {cubes.shape}, wanted (B, X, Y, Z) with B > 0'
      )
    if not np.isfinite(cubes).all():
      raise ValueError('cubes hold NaN or infinite values, wanted HU')
    # The model clips to a window that int16 holds.
    limits = np.iinfo(np.int16)
    cubes = np.rint(np.clip(cubes, limits.min, limits.max)).astype(np.int16)
    batches = [
      self.infer('embed_cubes_int16', cubes=cubes[at : at + self._batch_size])
      for at in range(0, len(cubes), self._batch_size)
    ]
    return np.concatenate([batch['embedding'] for batch in batches])

  def infer(
    self, signature: str | None = None, **inputs: np.ndarray
  ) -> dict[str, np.ndarray]:
    """Calls any signature of the model.

    Args:
      signature: its name, the default one for None.
      **inputs: numeric arrays by name, with the axis of the batch, of just the
        dtypes that `metadata` tells.

    Returns:
      Numeric outputs by name.

    Raises:
      ValueError: a dtype that is not numeric.
      ServerError, OSError: there is no answer, or a refusal.
    """
    body, headers = encode(signature, **inputs)
    answer, headers = self._send(
      'POST', f'/v2/models/{self._model}/infer', io.BytesIO(body), headers
    )
    return _parse(answer, int(headers['inference-header-content-length']))

  def embed_scan(
    self, path: str, stride: Sequence[int] | None = None
  ) -> EmbeddedScan:
    """Embeds all of a scan.

    Args:
      path: .mha, .nii, .nii.gz, .nrrd or .zip, sent as it is, or a .mhd, which
        is sent with its data file in a .zip.
      stride: voxels between cubes along x, y and z; the cube by default.

    Raises:
      ServerError, OSError: a file is missing, there is no answer, or a refusal.
    """
    query = ''
    if stride is not None:
      query = '?stride=' + ','.join(str(int(step)) for step in stride)
    with _open_scan(path) as file:
      answer, _ = self._send(
        'POST',
        f'/v1/models/{self._model}:embed_scan{query}',
        file,
        {'Accept': 'application/x-npz'},
      )
    with np.load(io.BytesIO(answer), allow_pickle=False) as arrays:
      return EmbeddedScan(**arrays)

  def _send(self, method, path, file=None, headers=None):
    """Returns the body and headers of a good answer."""
    for left in reversed(range(self._retries + 1)):
      if file is not None:
        file.seek(0)
      status, headers_back, body = self._ask(method, path, file, headers or {})
      if status < 300:
        return body, headers_back
      if status not in _BUSY or not left:
        break
      time.sleep(float(headers_back.get('retry-after', 1)))
    raise ServerError(status, _reason(body))

  def _ask(self, method, path, file: BinaryIO | None, headers):
    kind = {
      'http': http.client.HTTPConnection,
      'https': http.client.HTTPSConnection,
    }[self._parts.scheme]
    connection = kind(
      self._parts.hostname, self._parts.port, timeout=self._timeout_s
    )
    headers = self._headers | headers
    if file is not None:
      headers['Content-Type'] = 'application/octet-stream'
      headers['Content-Length'] = str(_length(file))
    with contextlib.closing(connection):
      # A server may refuse before it has read everything; its reason counts.
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request(
          method, self._parts.path.rstrip('/') + path, file, headers
        )
      try:
        answer = connection.getresponse()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, names, answer.read()
      except http.client.HTTPException as error:
        raise ConnectionError(
          f'{self._parts.hostname} gave no whole answer of HTTP'
          f' ({type(error).__name__}): is it the port of REST?'
        ) from error


def encode(
  signature: str | None = None, **inputs: np.ndarray
) -> tuple[bytes, dict[str, str]]:
  """Returns the body and headers of a request; see Client.infer.

  Raises:
    ValueError: a dtype that is not numeric.
  """
  parts = [_describe(name, np.asarray(one)) for name, one in inputs.items()]
  message = {
    'inputs': [description for description, _ in parts],
    'parameters': {'binary_data_output': True}
    | ({'signature_name': signature} if signature else {}),
  }
  head = json.dumps(message).encode()
  body = b''.join([head, *(data for _, data in parts)])
  return body, {'Inference-Header-Content-Length': str(len(head))}


def _length(file):
  length = file.seek(0, os.SEEK_END)
  file.seek(0)
  return length


def _reason(body):
  try:
    return str(json.loads(body)['error'])
  except (ValueError, KeyError, TypeError):
    return body[:200].decode(errors='replace')


def _describe(name, array):
  """Returns the description of an input, and its bytes."""
  for kind, dtype in _KINDS.items():
    if array.dtype == dtype:
      data = np.ascontiguousarray(array, dtype).tobytes()
      return {
        'name': name,
        'shape': list(array.shape),
        'datatype': kind,
        'parameters': {'binary_data_size': len(data)},
      }, data
  raise ValueError(
    f'{name} is {array.dtype}, wanted one of '
    f'{", ".join(str(dtype) for dtype in _KINDS.values())}'
  )


def _parse(body, start):
  """Returns the binary outputs of an answer."""
  outputs = {}
  for one in json.loads(body[:start])['outputs']:
    size = one['parameters']['binary_data_size']
    if one['datatype'] not in _KINDS:
      raise ValueError(f'output {one["name"]} is {one["datatype"]}: use REST')
    array = np.frombuffer(body[start : start + size], _KINDS[one['datatype']])
    outputs[one['name']] = array.reshape(one['shape'])
    start += size
  return outputs


def _open_scan(path):
  """Opens what is to be sent; closing it leaves nothing behind."""
  path = os.fspath(path)
  data = _data_file(path) if path.endswith('.mhd') else 'LOCAL'
  if data == 'LOCAL':
    return open(path, 'rb')
  with contextlib.ExitStack() as on_error:
    archive = on_error.enter_context(tempfile.TemporaryFile())
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED, True, 1) as packed:
      packed.write(path, os.path.basename(path))
      packed.write(os.path.join(os.path.dirname(path), data), data)
    on_error.pop_all()
  return archive


def _data_file(path):
  with open(path, encoding='utf-8', errors='replace') as file:
    fields = {
      key.strip(): value.strip()
      for key, _, value in (line.partition('=') for line in file)
    }
  return fields.get('ElementDataFile', 'LOCAL')
