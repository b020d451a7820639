r"""The server: cubes/s and latency, against a JSON server and without one.

  pip install -e '.[serve,benchmark]'
  python tools/benchmark.py serve
  python tools/benchmark.py serve --encoders tiny --clients 32 --seconds 20

Encoders with random weights: `tiny`, which takes a few ms a cube, so that the
server counts, and `full`, the published one. The sides are

- serve_tiny_8 and so on, by the number of clients: `python -m
  transvw_tf2.serve` with its defaults, requests of one int16 cube as a binary
  tensor (V2). _batch1: the same with --max_batch 1.
- _json: json_server.py, FastAPI with orjson, one call of the model at a time,
  no batching; requests of one cube as JSON integers.
- serve_tiny_predict: Keras' model.predict within a process, and
  serve_tiny_direct: calls of the SavedModel there, both 8 cubes at a time.

Clients (http_clients.py) are coroutines in one process of their own. Requests
are encoded before, cubes are of a synthetic chest CT. Each measurement lasts
--seconds, then requests that were sent are waited for; all sides go in turn,
the median of --repeats counts for cubes/s, and latencies are of all requests.
All sides must give the same vectors before.

serve_request_...: bytes of the body of a request of one cube. serve_memory_...:
resident memory of the server after so many requests to the tiny encoder.
Takes about 20 minutes on 2 cores and 6 GB of memory.
"""

import argparse
import base64
import collections
from collections.abc import Iterator
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

from absl import flags
import numpy as np
import side_process

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.serving import client as client_lib

_ENCODERS = flags.DEFINE_multi_enum(
  'encoders', ['tiny', 'full'], ['tiny', 'full'], 'What is served.'
)
_FILTERS = {
  'tiny': flags.DEFINE_integer(
    'tiny_filters', 1, 'Filters of the first block of tiny.', lower_bound=1
  ),
  'full': flags.DEFINE_integer(
    'full_filters', 32, 'Filters of the first block of full.', lower_bound=1
  ),
}
_SIZE = flags.DEFINE_list('size', ['64', '64', '32'], 'Voxels X,Y,Z of a cube.')
_CLIENTS = flags.DEFINE_list('clients', ['1', '8', '32'], 'Clients at a time.')
_SECONDS = flags.DEFINE_float(
  'seconds', 10.0, 'How long clients send.', lower_bound=0.05
)
_REPEATS = flags.DEFINE_integer(
  'repeats', 3, 'Measurements of each side.', lower_bound=1
)
_REQUESTS = flags.DEFINE_list(
  'requests', ['1000', '10000'], 'Requests after which memory is looked at.'
)

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_JSON_SERVER = os.path.join(_ROOT, 'tools', 'benchmarks', 'json_server.py')
_HTTP_CLIENTS = os.path.join(_ROOT, 'tools', 'benchmarks', 'http_clients.py')
_BATCH = 8  # of sides without a server, and the default of --max_batch
_CUBES = 16  # different ones that are sent
_OURS, _BATCH1, _JSON = '', '_batch1', '_json'
_PREDICT, _DIRECT = '_predict', '_direct'
_PERCENTILES = (50, 95, 99)
_SIGNATURE = 'embed_cubes_int16'


def serve() -> Iterator[tuple]:
  """Yields the lines of `serve`."""
  with tempfile.TemporaryDirectory() as folder:
    cubes = make_cubes()
    yield from _measure_sizes(cubes[0])
    requests = _write_requests(folder, cubes)
    for encoder in _ENCODERS.value:
      model = os.path.join(folder, encoder)
      export(model, _FILTERS[encoder].value, _cube_shape())
      yield from _measure(encoder, model, requests, cubes)
      if encoder == 'tiny':
        yield from _measure_memory(model, requests)


def _cube_shape() -> list[int]:
  return [int(side) for side in _SIZE.value]


def make_cubes() -> np.ndarray:
  """Returns int16 (N, X, Y, Z, 1) of a synthetic chest CT, HU in its window."""
  from transvw_tf2.scans import phantom

  shape = _cube_shape()
  # Whatever their size, they show as much of the body.
  hu = phantom.make_patient(1, 0, [2 * side for side in shape]).hu
  rng = np.random.default_rng(1)
  cubes = []
  for _ in range(_CUBES):
    corner = [rng.integers(side + 1) for side in shape]
    box = (slice(at, at + side) for at, side in zip(corner, shape, strict=True))
    cubes.append(hu[tuple(box)])
  return np.clip(cubes, schema.HU_MIN, schema.HU_MAX)[..., np.newaxis]


def make_network(filters: int, shape):
  """Returns a network, whose random weights are always the same.

  Args:
    filters: of the first block.
    shape: voxels of a cube along x, y and z.
  """
  import keras

  from transvw_tf2.models import unet3d

  keras.utils.set_random_seed(1)
  network = unet3d.UNet3D(base_filters=filters)
  network.build((None, *shape, 1))
  return network


def export(path: str, filters: int, shape) -> None:
  """Exports the encoder of `make_network`."""
  from transvw_tf2.serving import export as export_lib

  export_lib.export_encoder(
    make_network(filters, shape), path, {}, cube_shape=shape
  )


def encode_json(values: np.ndarray) -> bytes:
  """Returns the shortest JSON request of one cube (X, Y, Z, 1)."""
  message = {'instances': [values[..., 0].tolist()]}
  return json.dumps(message, separators=(',', ':')).encode()


def _measure_sizes(cube) -> Iterator[tuple]:
  """Yields lines of the sizes of requests of a cube int16 (X, Y, Z, 1), HU."""
  binary, _ = client_lib.encode(_SIGNATURE, cubes=cube[np.newaxis])
  scaled = schema.scale_hu(cube.astype(np.float32))
  encoded = base64.b64encode(cube.astype('<i2').tobytes()).decode()
  message = {'signature_name': 'embed_bytes', 'instances': [{'b64': encoded}]}
  name = 'serve_request'
  yield name, float(len(binary)), 'bytes', None, None
  for other, body in (
    ('json_integers', encode_json(cube)),
    # As published models take them, in [0, 1].
    ('json_floats', encode_json(scaled)),
    ('json_base64', json.dumps(message).encode()),
  ):
    yield f'{name}_{other}', float(len(body)), 'bytes', None, None
    yield (
      *(f'{name}_of_{other}', float(len(binary)), 'bytes'),
      *(len(binary) / len(body), f'{name}_{other}'),
    )


def _write_requests(folder, cubes) -> dict[str, dict]:
  """Writes bodies to files; returns arguments of http_clients.load by side."""

  def write(kind, bodies):
    paths = []
    for at, body in enumerate(bodies):
      paths.append(os.path.join(folder, f'{kind}_{at}'))
      with open(paths[-1], 'wb') as file:
        file.write(body)
    return paths

  encoded = [client_lib.encode(_SIGNATURE, cubes=cube[None]) for cube in cubes]
  binary = {
    'path': '/v2/models/transvw/infer',
    'headers': {'Content-Type': 'application/octet-stream', **encoded[0][1]},
    'files': write('binary', [body for body, _ in encoded]),
  }
  plain = {
    'path': '/predict',
    'headers': {'Content-Type': 'application/json'},
    'files': write('json', [encode_json(cube) for cube in cubes]),
  }
  return {_OURS: binary, _BATCH1: binary, _JSON: plain}


def _measure(encoder, model, requests, cubes) -> Iterator[tuple]:
  """Yields the lines of one encoder."""
  with contextlib.ExitStack() as stack:
    servers = {
      _OURS: stack.enter_context(Server(*_ours(model))),
      _BATCH1: stack.enter_context(Server(*_ours(model), '--max_batch=1')),
      _JSON: stack.enter_context(Server(_JSON_SERVER, f'--model={model}')),
    }
    clients = stack.enter_context(_Clients())
    settings = {
      'model': model,
      'filters': _FILTERS[encoder].value,
      'cubes': f'{model}.npy',
    }
    np.save(settings['cubes'], cubes)
    process = stack.enter_context(
      side_process.SideProcess('the model', os.path.abspath(__file__), settings)
    )
    _check_same(servers, process, cubes)
    speeds = collections.defaultdict(list)
    latencies = collections.defaultdict(list)
    wrong = collections.Counter()
    for _ in range(_REPEATS.value):
      for count in map(int, _CLIENTS.value):
        for side, server in servers.items():
          load = clients.send(
            server, requests[side], count, seconds=_SECONDS.value
          )
          speeds[count, side].append(len(load['latencies']) / load['seconds'])
          latencies[count, side] += load['latencies']
          wrong[side] += sum(load['errors'].values())
      for side in (_PREDICT, _DIRECT):
        speeds[side].append(process.ask(f'{side} {_SECONDS.value:g}'))
    speeds = {key: statistics.median(values) for key, values in speeds.items()}
  yield from _lines(f'serve_{encoder}', speeds, latencies, wrong)


def _ours(model):
  return ('-m', 'transvw_tf2.serve', f'--model={model}', '--port=0', '--nogrpc')


def _lines(name, speeds, latencies, wrong) -> Iterator[tuple]:
  """Yields the lines of one encoder from what was measured."""
  for side in (_PREDICT, _DIRECT):
    yield f'{name}{side}', speeds[side], 'cubes/s', None, None
  yield f'{name}_cube', 1000 / speeds[_DIRECT], 'ms', None, None
  for count in map(int, _CLIENTS.value):
    for side in (_OURS, _BATCH1, _JSON):
      yield (
        *(f'{name}_{count}{side}', speeds[count, side], 'cubes/s'),
        *_ratio(speeds, (count, side), (count, _JSON), name),
      )
    for side in (_OURS, _BATCH1, _JSON):
      for percent in _PERCENTILES:
        times = {
          one: np.percentile(latencies[count, one] or [np.nan], percent) * 1000
          for one in (side, _JSON)
        }
        yield (
          *(f'{name}_{count}{side}_p{percent}', times[side], 'ms'),
          *_ratio(times, side, _JSON, f'{name}_{count}', f'_p{percent}'),
        )
    yield (
      *(f'{name}_{count}_batching', speeds[count, _OURS], 'cubes/s'),
      *_ratio(speeds, (count, _OURS), (count, _BATCH1), name),
    )
    yield (
      *(f'{name}_{count}_serving', speeds[count, _OURS], 'cubes/s'),
      *_ratio(speeds, (count, _OURS), _PREDICT, name),
    )
  for side in (_OURS, _BATCH1, _JSON):
    yield f'{name}{side}_errors', float(wrong[side]), 'requests', None, None


def _ratio(values, key, to, name, suffix=''):
  """Returns the ratio of two values, and what it is to; none to itself."""
  if key == to:
    return None, None
  side = f'_{to[0]}{to[1]}' if isinstance(to, tuple) else to
  return values[key] / values[to], f'{name}{side}{suffix}'


def _measure_memory(model, requests) -> Iterator[tuple]:
  """Yields lines of the memory of our server after many requests."""
  import psutil

  first, sent = None, 0
  with Server(*_ours(model)) as server, _Clients() as clients:
    process = psutil.Process(server.process.pid)
    for number in map(int, _REQUESTS.value):
      load = clients.send(server, requests[_OURS], 8, requests=number - sent)
      if load['errors']:
        raise errors.UserError(f'the server failed: {load["errors"]}')
      sent = number
      time.sleep(1)  # what is freed later is free
      name, memory = f'serve_memory_{number}', process.memory_info().rss
      ratio = (None, None) if first is None else (memory / first[1], first[0])
      yield name, memory / 1e6, 'MB', *ratio
      first = first or (name, memory)


def _check_same(servers, process, cubes) -> None:
  """Raises errors.UserError if a side gives other vectors."""
  want = np.array(process.ask(_PREDICT))
  sides = {side: _embed_by(side, servers[side], cubes) for side in servers}
  sides[_DIRECT] = np.array(process.ask(_DIRECT))
  for side, got in sides.items():
    difference = np.abs(got - want).max() / np.abs(want).max()
    if not difference <= 1e-5:  # NaN too
      raise errors.UserError(
        f'side {side!r} gives other vectors: they differ by {difference:.2g}'
      )


def _embed_by(side, server, cubes):
  if side != _JSON:
    return client_lib.Client(server.url).embed_cubes(cubes)
  rows = []
  for cube in cubes:
    request = urllib.request.Request(
      f'{server.url}/predict',
      encode_json(cube),
      {'Content-Type': 'application/json'},
    )
    with urllib.request.urlopen(request) as answer:
      rows += json.load(answer)['predictions']
  return np.array(rows)


class Server:
  """A server in a process of its own, which ends with the context.

  Attributes:
    url: such as http://127.0.0.1:8501.
    process: subprocess.Popen.
  """

  def __init__(self, *arguments: str):
    """Starts Python and waits until the server says where it is.

    Args:
      *arguments: of Python.

    Raises:
      UserError: it ended instead.
    """
    self._log = tempfile.TemporaryFile('w+')  # noqa: SIM115, see __exit__
    self.process = subprocess.Popen(
      [sys.executable, *arguments],
      stdout=subprocess.PIPE,
      stderr=self._log,
      text=True,
      cwd=_ROOT,
    )
    line = self.process.stdout.readline()
    if ' at http' not in line:
      self.process.wait()
      self._log.seek(0)
      lines = self._log.read().splitlines() or ['no output']
      raise errors.UserError(f'a server did not start: {lines[-1]}')
    self.url = line.split(' at ')[1].split()[0]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.process.terminate()
    self.process.wait()
    self.process.stdout.close()
    self._log.close()


class _Clients(side_process.SideProcess):
  """The process of http_clients.py."""

  def __init__(self):
    super().__init__('the clients', _HTTP_CLIENTS, {})

  def send(self, server, request, clients, **how) -> dict:
    """Returns what http_clients.load does."""
    arguments = {
      'url': server.url + request['path'],
      'files': request['files'],
      'headers': request['headers'],
      'clients': clients,
    }
    return self.ask(json.dumps(arguments | how))


class _InProcess:
  """Embeds cubes without a server, by `predict` and `direct`."""

  def __init__(self, settings):
    """Loads the model of settings: dict with model, filters and cubes."""
    import tensorflow as tf

    self._cubes = np.load(settings['cubes'])
    network = make_network(settings['filters'], self._cubes.shape[1:4])
    self._keras = _keras_encoder(network)
    self._loaded = tf.saved_model.load(settings['model'])
    self._sides = {_PREDICT: self._predict, _DIRECT: self._direct}

  def __call__(self, line: str):
    """Returns vectors for '_predict', cubes/s for '_predict 10' seconds."""
    side, *seconds = line.split()
    embed = self._sides[side]
    if not seconds:
      return np.concatenate(list(embed())).tolist()
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < float(seconds[0]):
      done += sum(len(vectors) for vectors in embed())
    return done / passed

  def _predict(self):
    cubes = schema.scale_hu(self._cubes.astype(np.float32))
    yield self._keras.predict(cubes, batch_size=_BATCH, verbose=0)

  def _direct(self):
    import tensorflow as tf

    for at in range(0, len(self._cubes), _BATCH):
      cubes = tf.constant(self._cubes[at : at + _BATCH])
      yield self._loaded.signatures[_SIGNATURE](cubes=cubes)[
        'embedding'
      ].numpy()


def _keras_encoder(network):
  """Returns a keras.Model that embeds cubes float32 in [0, 1]."""
  import keras

  class Encoder(keras.Model):
    def __init__(self):
      super().__init__()
      self.network = network

    def call(self, cubes):
      return self.network.embed(cubes)

  return Encoder()


if __name__ == '__main__':
  _parser = argparse.ArgumentParser()
  _parser.add_argument('settings', type=json.loads)
  _settings = _parser.parse_args().settings
  side_process.serve(lambda: _InProcess(_settings))
