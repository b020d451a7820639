"""The benchmark of the server, and the server and clients that it brings."""

import asyncio
from http import server as http_server
import importlib.util
import os
import subprocess
import sys
import threading

from absl.testing import flagsaver
import numpy as np
import pytest
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2 import schema

pytest.importorskip('kserve', reason='the server is not installed')
pytest.importorskip('psutil')
import httpx

ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
FOLDER = os.path.join(ROOT, 'tools', 'benchmarks')
_SHAPE = (16, 8, 8)


@pytest.fixture(name='serve')
def _serve(import_main):
  return import_main('tools.benchmark').load('serve')


@pytest.fixture(name='load_file')
def _load_file(monkeypatch):
  monkeypatch.syspath_prepend(FOLDER)

  def load(name):
    spec = importlib.util.spec_from_file_location(
      name, os.path.join(FOLDER, f'{name}.py')
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

  return load


def test_sizes_of_requests(serve):
  with flagsaver.flagsaver(size=['32', '32', '16']):
    cube = serve.make_cubes()[0]
  rows = {row[0]: row[1:] for row in serve._measure_sizes(cube)}
  name = 'serve_request'
  size = rows[name][0]
  assert 0 <= size - cube.nbytes < 1000
  for other, most in (
    ('json_integers', 0.5),
    ('json_floats', 0.11),
    ('json_base64', 0.8),
  ):
    value, unit, ratio, to = rows[f'{name}_of_{other}']
    assert (value, unit, to) == (size, 'bytes', f'{name}_{other}')
    assert ratio == size / rows[f'{name}_{other}'][0] <= most


def test_cubes_are_of_a_chest(serve):
  with flagsaver.flagsaver(size=['16', '16', '8']):
    cubes = serve.make_cubes()
  assert cubes.dtype == np.int16 and cubes.shape == (16, 16, 16, 8, 1)
  assert cubes.min() >= -1000 and cubes.max() <= 1000
  assert len(np.unique(cubes, axis=0)) > 8
  assert cubes.std() > 100  # air and tissue


def test_lines(serve):
  speeds = {'_predict': 10.0, '_direct': 20.0}
  latencies = {}
  for count in (1, 4):
    for side, speed in (('', 8.0), ('_batch1', 5.0), ('_json', 2.0)):
      speeds[count, side] = count * speed
      latencies[count, side] = list(np.arange(101) / (100 * speed))
  wrong = {'': 0, '_batch1': 0, '_json': 3}
  with flagsaver.flagsaver(clients=['1', '4']):
    rows = list(serve._lines('serve_tiny', speeds, latencies, wrong))
  names = [row[0] for row in rows]
  assert len(set(names)) == len(names) == 3 + 2 * (3 + 9 + 2) + 3
  found = {row[0]: row[1:] for row in rows}
  assert found['serve_tiny_cube'] == (50.0, 'ms', None, None)
  assert found['serve_tiny_4'] == (32, 'cubes/s', 4, 'serve_tiny_4_json')
  assert found['serve_tiny_4_json'] == (8, 'cubes/s', None, None)
  assert found['serve_tiny_4_batching'][2:] == (1.6, 'serve_tiny_4_batch1')
  assert found['serve_tiny_4_serving'][2:] == (3.2, 'serve_tiny_predict')
  value, unit, ratio, to = found['serve_tiny_1_p95']
  assert (unit, to) == ('ms', 'serve_tiny_1_json_p95')
  assert value == pytest.approx(950 / 8)
  assert ratio == pytest.approx(1 / 4)
  assert found['serve_tiny_json_errors'] == (3, 'requests', None, None)


class _Handler(http_server.BaseHTTPRequestHandler):
  """Refuses each third request."""

  protocol_version = 'HTTP/1.1'

  def do_POST(self):
    body = self.rfile.read(int(self.headers['Content-Length']))
    with self.server.lock:
      self.server.seen.append((self.headers['X-Test'], body))
      refused = len(self.server.seen) % 3 == 0
    self.send_response(429 if refused else 200)
    self.send_header('Content-Length', '0')
    self.end_headers()

  def log_message(self, *_):
    pass


def test_clients_count_answers_and_refusals(load_file):
  load = load_file('http_clients').load
  server = http_server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
  server.seen, server.lock = [], threading.Lock()
  url = f'http://127.0.0.1:{server.server_port}'
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    bodies, headers = [b'one', b'two'], {'X-Test': 'yes'}
    got = asyncio.run(load(url, bodies, headers, 4, requests=30))
    assert len(got['latencies']) == 20
    assert got['errors'] == {'429': 10}
    assert 0 < max(got['latencies']) <= got['seconds']
    seen = [body for _, body in server.seen]
    assert sorted(set(seen)) == bodies and len(seen) == 30
    assert {header for header, _ in server.seen} == {'yes'}
    got = asyncio.run(load(url, bodies, headers, 2, seconds=0.2))
    assert 0.2 <= got['seconds'] < 5
    assert len(server.seen) == 30 + len(got['latencies']) + got['errors']['429']
  finally:
    server.shutdown()
    server.server_close()
  got = asyncio.run(load(url, bodies, headers, 2, requests=4))
  assert sum(got['errors'].values()) == 4 and not got['latencies']


def test_the_json_server_gives_the_vectors_of_the_network(
  serve, load_file, tmp_path
):
  model = str(tmp_path / 'model')
  serve.export(model, 1, _SHAPE)
  rng = np.random.default_rng(0)
  cubes = rng.integers(-1000, 1000, (2, *_SHAPE, 1)).astype(np.int16)
  network = serve.make_network(1, _SHAPE)
  want = network.embed(schema.scale_hu(tf.cast(cubes, tf.float32))).numpy()
  app = load_file('json_server').make_app(model)

  async def post(*bodies):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport) as client:
      url = 'http://server/predict'
      return [await client.post(url, content=body) for body in bodies]

  answers = asyncio.run(post(*(serve.encode_json(cube) for cube in cubes)))
  for answer, row in zip(answers, want, strict=True):
    (got,) = answer.json()['predictions']
    np.testing.assert_allclose(got, row, atol=1e-5 * np.abs(want).max())
  wrong = (b'', b'{}', b'{"instances": [[[1]]]}', b'{"instances": ["a"]}')
  for answer in asyncio.run(post(*wrong)):
    assert answer.status_code == 400


def test_a_server_that_does_not_start(serve):
  with pytest.raises(errors.UserError, match=r'not start: .*no_such_module'):
    serve.Server('-m', 'no_such_module')


@pytest.mark.long
def test_the_command():
  done = subprocess.run(
    [
      *(sys.executable, 'tools/benchmark.py', 'serve', '--size=16,16,8'),
      *('--full_filters=2', '--clients=1,3', '--seconds=0.2', '--repeats=2'),
      '--requests=30,60',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  rows = {
    row[0]: row[1:]
    for row in (line.split(', ') for line in done.stdout.splitlines())
  }
  assert len(rows) == 7 + 2 * (3 + 2 * (3 + 9 + 2) + 3) + 2
  for name, (value, unit, _, _) in rows.items():
    assert (float(value) == 0) == name.endswith('_errors'), name
    assert unit in ('cubes/s', 'ms', 'bytes', 'requests', 'MB')
  assert rows['serve_memory_60'][3] == 'serve_memory_30'
  assert 0.9 < float(rows['serve_memory_60'][2]) < 1.1
