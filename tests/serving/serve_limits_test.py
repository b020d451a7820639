"""The limits of the server: queue, time, keys, signals and clients that die."""

from concurrent import futures
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib import parse

import numpy as np
import pytest

from tests.serving import serve_process
from transvw_tf2.scans import geometry
from transvw_tf2.scans import reader
from transvw_tf2.serving import client as client_lib

kserve = pytest.importorskip('kserve', reason=serve_process.SKIPPED)
import grpc  # noqa: E402, KServe brings these
import httpx  # noqa: E402
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb  # noqa: E402
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc  # noqa: E402

_PREDICT = '/v1/models/transvw:predict'


@pytest.fixture(name='toy', scope='module')
def _toy(tmp_path_factory):
  path = tmp_path_factory.mktemp('toy') / 'model'
  serve_process.export_toy(path)
  return path


@pytest.fixture(name='server', scope='module')
def _server(toy, tmp_path_factory):
  folder = tmp_path_factory.mktemp('server')
  with serve_process.running(
    *(toy, folder, '--max_batch=4', '--max_queue=6', '--max_wait_ms=300'),
    '--timeout_s=4',
  ) as server:
    yield server


def _slow(server, *seconds, timeout=60):
  return httpx.post(
    server.url + _PREDICT,
    json={'signature_name': 'slow', 'instances': list(seconds)},
    timeout=timeout,
  )


def _metric(server, name):
  lines = httpx.get(server.url + '/metrics').text.splitlines()
  return next(
    (float(one.split()[-1]) for one in lines if one.startswith(name + ' ')), 0
  )


def _until(condition):
  for _ in range(100):
    if condition():
      return
    time.sleep(0.1)
  raise AssertionError('waited for 10 s')


def _idle(server):
  """Waits until the model has nothing to do."""
  assert _slow(server, 0.0).status_code == 200
  assert _metric(server, 'transvw_queue_items') == 0


def test_requests_share_a_batch(server):
  with futures.ThreadPoolExecutor(4) as pool:
    answers = list(pool.map(lambda _: _slow(server, 0.0), range(4)))
  sizes = [one.json()['predictions'][0] for one in answers]
  assert max(sizes) > 1  # `slow` returns the size of the batch it was in


def test_a_large_request_is_split(server):
  answer = _slow(server, *[0.0] * 6)
  assert sorted(answer.json()['predictions']) == [2, 2, 4, 4, 4, 4]


def test_a_request_that_never_fits(server):
  answer = _slow(server, *[0.0] * 7)
  assert answer.status_code == 413
  assert 'wanted at most 6' in answer.json()['error']


@pytest.mark.parametrize(
  'rows',
  [
    {'instances': ['bad'] * 7},
    {'inputs': ['bad'] * 7},
    {'inputs': {'seconds': ['bad'] * 7}},
  ],
)
def test_rows_are_counted_before_they_are_decoded(server, rows):
  message = {'signature_name': 'slow', **rows}
  answer = httpx.post(server.url + _PREDICT, json=message)
  assert answer.status_code == 413, answer.text
  assert 'holds 7 items, wanted at most 6' in answer.json()['error']


def test_a_full_queue(server):
  with futures.ThreadPoolExecutor(20) as pool:
    answers = list(pool.map(lambda _: _slow(server, 0.8), range(20)))
  codes = [one.status_code for one in answers]
  assert set(codes) == {200, 429}
  for one in answers:
    if one.status_code == 429:
      assert int(one.headers['retry-after']) >= 1
      assert 'queue is full' in one.json()['error']
  assert _metric(server, 'transvw_queue_full_total') == codes.count(429)
  _idle(server)


def test_a_full_queue_of_grpc(server):
  channel = grpc.insecure_channel(server.grpc)
  stub = grpc_predict_v2_pb2_grpc.GRPCInferenceServiceStub(channel)
  request = pb.ModelInferRequest(
    model_name='transvw',
    parameters={'signature_name': pb.InferParameter(string_param='slow')},
    inputs=[{'name': 'seconds', 'shape': [1], 'datatype': 'FP32'}],
    raw_input_contents=[np.float32(0.8).tobytes()],
  )
  calls = [stub.ModelInfer.future(request) for _ in range(20)]
  codes = {call.code() for call in calls}
  assert codes == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
  full = [call for call in calls if call.code() != grpc.StatusCode.OK]
  assert dict(full[0].trailing_metadata())['retry-after'].isdigit()
  _idle(server)


def test_the_client_waits_for_a_full_queue(server):
  def infer(_):
    client = client_lib.Client(server.url, retries=20)
    return client.infer('slow', seconds=np.array([0.2], np.float32))

  with futures.ThreadPoolExecutor(10) as pool:
    assert len(list(pool.map(infer, range(10)))) == 10


def test_a_time_limit(server):
  answer = _slow(server, 5.0)
  assert answer.status_code == 504
  assert 'within 4 s' in answer.json()['error']
  time.sleep(1.5)
  _idle(server)


def test_clients_that_go_away_leave_the_queue(server):
  for _ in range(3):
    for _ in range(2):
      with pytest.raises(httpx.TimeoutException):
        _slow(server, 1.0, 1.0, timeout=0.6)
  _until(lambda: _metric(server, 'transvw_queue_items') == 0)
  _idle(server)


# A whole request to a model that takes long, and half of one.
_KILLED = """
import http.client, json, socket, sys, time
place, whole = (sys.argv[1], int(sys.argv[2])), sys.argv[3] == 'whole'
if whole:
  body = json.dumps({'signature_name': 'slow', 'instances': [1.5]})
  connection = http.client.HTTPConnection(*place)
  connection.request(
    'POST', '/v1/models/transvw:predict', body,
    {'Content-Type': 'application/json'})
  connection.getresponse()
else:
  connection = socket.create_connection(place)
  connection.sendall(
    b'POST /v1/models/transvw:predict HTTP/1.1\\r\\nHost: x\\r\\n'
    b'Content-Length: 1000\\r\\n\\r\\n{"instances": [')
  time.sleep(60)
"""


def test_killed_clients_leave_nothing(server):
  psutil = pytest.importorskip('psutil')
  _idle(server)
  _until(lambda: _connections(server) == 0)
  files = psutil.Process(server.process.pid).num_fds()
  place = parse.urlsplit(server.url)
  command = (sys.executable, '-S', '-c', _KILLED, place.hostname)
  clients = [
    subprocess.Popen([*command, str(place.port), kind])
    for kind in ['whole'] * 6 + ['half'] * 4
  ]
  _until(
    lambda: (
      _metric(server, 'transvw_queue_items') > 0 and _connections(server) >= 10
    )
  )
  for client in clients:
    assert client.poll() is None  # in the middle of it
    client.kill()
    client.wait()
  _until(lambda: _metric(server, 'transvw_queue_items') == 0)
  _idle(server)
  assert not server.left_over()
  _until(lambda: _connections(server) == 0)
  _until(lambda: psutil.Process(server.process.pid).num_fds() <= files)


def _connections(server):
  """Open sockets of the server that are connected."""
  psutil = pytest.importorskip('psutil')
  process = psutil.Process(server.process.pid)
  # Under another name before psutil 6.
  ask = getattr(process, 'net_connections', None) or process.connections
  port = parse.urlsplit(server.url).port
  return sum(
    one.laddr.port == port and one.status in ('ESTABLISHED', 'CLOSE_WAIT')
    for one in ask('tcp')
  )


def test_sigterm_lets_requests_finish(toy, tmp_path):
  with serve_process.running(toy, tmp_path) as server:
    with futures.ThreadPoolExecutor(2) as pool:
      rest = pool.submit(_slow, server, 2.0)
      client = client_lib.Client(server.url)
      infer = pool.submit(
        client.infer, 'slow', seconds=np.array([2.0], np.float32)
      )
      time.sleep(1)
      server.process.send_signal(signal.SIGTERM)
      time.sleep(0.5)
      with pytest.raises(httpx.TransportError):
        httpx.get(server.url + '/v2/health/ready')  # nobody new comes in
      assert rest.result().status_code == 200, rest.result().text
      assert infer.result()['batch'].shape == (1,)
    assert server.process.wait(20) == 0


def test_api_key(tmp_path):
  serve_process.export_encoder(tmp_path / 'model')
  hu = serve_process.cubes()
  with serve_process.running(
    tmp_path / 'model', tmp_path, '--api_key=open sesame'
  ) as server:
    message = {'instances': hu.tolist()}
    for headers in (
      {},
      {'x-api-key': 'open'},
      {'x-api-key': ''},
      {'authorization': 'Bearer open sesam'},
      {'authorization': 'open sesame'},
      {'authorization': 'Basic open sesame'},
    ):
      for path in (_PREDICT, '/v1/models/transvw:embed_scan', '/metrics', '/'):
        answer = httpx.post(server.url + path, json=message, headers=headers)
        assert answer.status_code == 401, (path, headers)
        assert 'API key' in answer.json()['error']
        assert answer.headers['www-authenticate'] == 'Bearer'
    for headers in (
      {'x-api-key': 'open sesame'},
      {'authorization': 'Bearer open sesame'},
    ):
      answer = httpx.post(server.url + _PREDICT, json=message, headers=headers)
      assert answer.status_code == 200
    assert httpx.get(server.url + '/v2/health/ready').status_code == 200
    client = client_lib.Client(server.url, api_key='open sesame')
    assert client.embed_cubes(hu).shape == (3, 8)
    with pytest.raises(client_lib.ServerError, match='401: the API key'):
      client_lib.Client(server.url).embed_cubes(hu)
    _check_grpc_keys(server)
    assert 'sesame' not in server.log()


def _check_grpc_keys(server):
  channel = grpc.insecure_channel(server.grpc)
  stub = grpc_predict_v2_pb2_grpc.GRPCInferenceServiceStub(channel)
  assert stub.ServerReady(pb.ServerReadyRequest()).ready
  ask = pb.ModelMetadataRequest(name='transvw')
  for metadata in ((), (('x-api-key', 'no'),), (('authorization', 'Bearer'),)):
    with pytest.raises(grpc.RpcError) as raised:
      stub.ModelMetadata(ask, metadata=metadata)
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
  _check_silent_call(channel)
  for metadata in (
    (('x-api-key', 'open sesame'),),
    (('authorization', 'Bearer open sesame'),),
  ):
    assert stub.ModelMetadata(ask, metadata=metadata).name == 'transvw'


def _wait_for(event):
  """Yields nothing, once an event is set."""
  event.wait()
  yield from ()


def _check_silent_call(channel):
  """Without the key a call ends before its message has come."""
  never = threading.Event()
  call = channel.stream_unary('/inference.GRPCInferenceService/ModelMetadata')
  with pytest.raises(grpc.RpcError) as raised:
    call(_wait_for(never), timeout=10)
  never.set()
  assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.long
def test_scans_of_clients_that_die(tmp_path):
  serve_process.export_encoder(tmp_path / 'model')
  size = (64, 64, 32)
  rng = np.random.default_rng(0)
  hu = rng.integers(-1000, 1000, size).astype(np.int16)
  scan = str(tmp_path / 'scan.mha')
  reader.write_scan(scan, hu, geometry.Geometry(size))
  with serve_process.running(
    *(tmp_path / 'model', tmp_path, '--max_scans=1', '--scan_timeout_s=8'),
    '--max_batch=1',
  ) as server:
    place = parse.urlsplit(server.url)
    head = (
      'POST /v1/models/transvw:embed_scan?stride=1,1,1 HTTP/1.1\r\n'
      f'Host: x\r\nContent-Length: {os.path.getsize(scan)}\r\n\r\n'
    ).encode()
    with open(scan, 'rb') as file:
      content = file.read()
    for part in (1000, len(content)):  # dies while sending, and afterwards
      with socket.create_connection((place.hostname, place.port)) as connection:
        connection.sendall(head + content[:part])
        time.sleep(1.5)
        busy = httpx.post(
          server.url + '/v1/models/transvw:embed_scan', content=content
        )
        assert busy.status_code == 429
        assert busy.headers['retry-after']
      _until(lambda: _metric(server, 'transvw_queue_items') == 0)
      time.sleep(0.5)
    assert not server.left_over()
    got = client_lib.Client(server.url).embed_scan(scan)
    assert len(got.places) == 8 * 11 * 8
    answer = httpx.post(
      server.url + '/v1/models/transvw:embed_scan?stride=1,1,1',
      content=content,
      timeout=60,
    )
    assert answer.status_code == 504
    assert 'larger stride' in answer.json()['error']


def test_answers_are_sent_at_once(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['serve'])  # KServe reads it on import
  from transvw_tf2.serving.server import run

  with (
    run._listen('127.0.0.1', 0) as listener,
    socket.create_connection(listener.getsockname()),
    listener.accept()[0] as connection,
  ):
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
  ('flags', 'reason'),
  [
    (('--model=nowhere',), 'is not a SavedModel'),
    (('--model=nowhere', '--max_batch=0'), 'max_batch is 0, wanted at least 1'),
    (('--model=nowhere', '--api_key='), 'api_key is empty'),
    (('--model=nowhere', 'scan.mhd'), 'unexpected arguments'),
  ],
)
def test_wrong_flags_are_one_line(flags, reason):
  done = subprocess.run(
    [sys.executable, '-m', 'transvw_tf2.serve', *flags],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  assert reason in done.stderr + done.stdout
  assert 'Traceback' not in done.stderr


def test_a_port_that_is_taken_is_one_line(toy):
  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = taken.getsockname()[1]
    for flags in ((f'--port={port}',), ('--port=0', f'--grpc_port={port}')):
      done = subprocess.run(
        [
          *(sys.executable, '-m', 'transvw_tf2.serve', f'--model={toy}'),
          *flags,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
      )
      assert done.returncode == 1
      last = done.stderr.strip().splitlines()[-1]
      assert last.startswith('error: ') and str(port) in last, done.stderr
      assert 'Traceback' not in done.stderr
