"""Malformed requests: each gets a reason, and the next good one an answer."""

import base64
import json
import pickle
import re
import socket
import struct
from urllib import parse

import numpy as np
import pytest

from tests.serving import serve_process

kserve = pytest.importorskip('kserve', reason=serve_process.SKIPPED)
import grpc  # noqa: E402, KServe brings these
import httpx  # noqa: E402
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb  # noqa: E402
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc  # noqa: E402

_PREDICT = '/v1/models/transvw:predict'
_INFER = '/v2/models/transvw/infer'
_BYTES = 2 * 8 * 6 * 4
_ZEROS = np.zeros((1, *serve_process.CUBE, 1)).tolist()
_JSON = {'content-type': 'application/json'}
_LENGTH = 'inference-header-content-length'


@pytest.fixture(name='server', scope='module')
def _server(tmp_path_factory):
  folder = tmp_path_factory.mktemp('server')
  serve_process.export_encoder(folder / 'model')
  with serve_process.running(
    folder / 'model', folder, '--max_request_mb=1', '--timeout_s=5'
  ) as server:
    yield server


@pytest.fixture(name='still_good', autouse=True)
def _still_good(server):
  """After each test a good request is answered, and no file is left."""
  yield
  answer = httpx.post(server.url + _PREDICT, json={'instances': _ZEROS})
  assert answer.status_code == 200, answer.text
  assert not server.left_over()


def _b64(data):
  return {'b64': base64.b64encode(data).decode()}


def _nested(depth):
  return '[' * depth + ']' * depth


@pytest.mark.parametrize(
  ('message', 'reason'),
  [
    ({}, 'either instances'),
    ([], 'not a JSON object'),
    ('text', 'not a JSON object'),
    (None, 'not a JSON object'),
    ({'instances': []}, 'at least one item'),
    ({'instances': {}}, 'at least one item'),
    ({'instances': 'text'}, 'at least one item'),
    ({'instances': _ZEROS, 'inputs': _ZEROS}, 'either instances'),
    ({'instances': _ZEROS, 'signature_name': 'no'}, 'wanted one of embed_'),
    ({'instances': _ZEROS, 'signature_name': 7}, 'wanted one of embed_'),
    ({'instances': _ZEROS, 'signature_name': ['a']}, 'wanted one of embed_'),
    ({'instances': [[1, 2, 3]]}, 'shape 3, wanted 8 x 6 x 4 x 1'),
    ({'instances': [1.0]}, 'wanted 8 x 6 x 4 x 1'),
    ({'instances': [None]}, 'something else than numbers'),
    ({'instances': ['text']}, 'something else than numbers'),
    ({'instances': [['1', '2']]}, 'something else than numbers'),
    ({'instances': [[True]]}, 'something else than numbers'),
    ({'instances': [[[1], [1, 2]]]}, 'ragged'),
    ({'instances': [{'cubs': 1}]}, 'inputs are cubs, wanted cubes'),
    ({'instances': [{}]}, 'inputs are none, wanted cubes'),
    ({'instances': [[10**400]]}, 'something else than numbers'),
    ({'instances': [np.full((8, 6, 4, 1), 1e300).tolist()]}, 'infinite'),
    ({'instances': [np.full((8, 6, 4, 1), np.nan).tolist()]}, 'NaN'),
    ({'inputs': []}, 'at least 1'),
    ({'inputs': 3}, 'at least 1'),
    ({'inputs': {'cubes': 'text'}}, 'something else than numbers'),
    ({'inputs': np.full((2, 8, 6, 4, 1), np.inf).tolist()}, 'item 0: .*infin'),
    ({'inputs': [[1, 2]]}, 'wanted 8 x 6 x 4 x 1'),
  ],
)
def test_v1(server, message, reason):
  answer = httpx.post(
    server.url + _PREDICT, content=json.dumps(message), headers=_JSON
  )
  _refused(answer, 400, reason)


def _refused(answer, status, reason):
  """Asserts that an answer is one line of JSON with a reason."""
  assert answer.status_code == status, answer.text
  assert list(answer.json()) == ['error']
  line = answer.json()['error']
  assert '\n' not in line and len(line) < 400
  assert re.search(reason, line)


@pytest.mark.parametrize(
  'value', [1.5, 40000, -40000, 2**70, '7', [1]], ids=str
)
def test_v1_what_int16_does_not_hold(server, value):
  cube = _ZEROS[0]
  rows = json.loads(json.dumps(cube))
  rows[3][2][1][0] = value
  message = {'signature_name': 'embed_cubes_int16', 'instances': [rows]}
  answer = httpx.post(server.url + _PREDICT, json=message)
  assert answer.status_code == 400
  assert answer.json()['error'].startswith('item 0: cubes ')


@pytest.mark.parametrize(
  ('value', 'reason'),
  [
    (_b64(b'1' * (_BYTES - 1)), f'{_BYTES - 1} bytes, wanted {_BYTES}'),
    (_b64(b''), f'0 bytes, wanted {_BYTES}'),
    (_b64(pickle.dumps(np.zeros(9))), f'wanted {_BYTES}'),
    ({'b64': _b64(b'1' * _BYTES)['b64'][:-5]}, 'not good base64'),
    ({'b64': '####'}, 'not good base64'),
    ({'b64': 3}, 'something else than strings'),
    ({'b64': None}, 'something else than strings'),
    ({'b65': ''}, 'inputs are b65'),
    (7, 'something else than strings'),
    ('text', f'4 bytes, wanted {_BYTES}'),
    ('\ud800', 'something|surrogates'),
    ([], 'shape 0, wanted 1'),
  ],
  ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize('form', ['instances', 'inputs'])
def test_v1_strings(server, value, reason, form):
  if form == 'inputs' and value == {'b65': ''}:
    reason = 'something else than strings'
  message = {'signature_name': 'embed_bytes', form: [value]}
  answer = httpx.post(
    server.url + _PREDICT, content=json.dumps(message), headers=_JSON
  )
  _refused(answer, 400, reason)


@pytest.mark.parametrize(
  ('content', 'headers', 'status'),
  [
    (b'', _JSON, 400),
    (b'{"instances": [1', _JSON, 400),
    (b'\x00\xff\xfe', _JSON, 400),
    (pickle.dumps({'instances': _ZEROS}), _JSON, 400),
    (pickle.dumps({'instances': _ZEROS}), {}, 400),
    (_nested(100_000).encode(), _JSON, 400),
    (b'{"instances": ' + _nested(100).encode() + b'}', _JSON, 400),
    (b'{"instances": [1]}', {'content-type': 'text/plain'}, 415),
    (b'{"instances": [1]}', {'content-type': 'application/pickle'}, 415),
    (b'{"instances": [1]}', {'content-encoding': 'gzip'}, 415),
    (b'1' * (2 << 20), _JSON, 413),
  ],
  ids=range(11),
)
@pytest.mark.parametrize('path', [_PREDICT, _INFER])
def test_bodies_that_are_no_message(server, content, headers, status, path):
  answer = httpx.post(server.url + path, content=content, headers=headers)
  if path == _INFER and status == 415 and 'content-type' in headers:
    status = 400  # V2 takes anything for binary, and misses its header
  assert answer.status_code == status, answer.text
  assert list(answer.json()) == ['error'] and answer.json()['error']


def test_a_body_of_unknown_length_has_a_limit(server):
  blocks = (b'1' * 65536 for _ in range(32))  # sent in chunks
  answer = httpx.post(server.url + _PREDICT, content=blocks)
  _refused(answer, 413, 'at most 1048576 bytes')


def _v2(**changes):
  hu = serve_process.cubes(1)
  tensor = {
    'name': 'cubes',
    'shape': list(hu.shape),
    'datatype': 'INT16',
    'data': hu.ravel().tolist(),
  }
  return {
    'parameters': {'signature_name': 'embed_cubes_int16'},
    'inputs': [tensor | changes],
  }


@pytest.mark.parametrize(
  ('message', 'reason'),
  [
    ({}, 'inputs'),
    ({'inputs': {}}, 'inputs'),
    ({'inputs': []}, 'inputs are none'),
    ({'inputs': [{}]}, 'name'),
    (_v2(name='x'), 'inputs are x, wanted cubes'),
    (_v2(datatype='FP32'), 'is FP32, wanted INT16'),
    (_v2(datatype='PICKLE'), 'is PICKLE, wanted INT16'),
    (_v2(shape=[1, 8, 6, 4]), r'wanted \[-1, 8, 6, 4, 1\]'),
    (_v2(shape=[2, 8, 6, 4, 1]), 'does not hold INT16 of shape'),
    (_v2(shape=[1, 6, 8, 4, 1]), 'wanted 8 x 6 x 4 x 1'),
    (_v2(shape=[-1, 8, 6, 4, 1]), r'wanted \[-1'),
    (_v2(shape=[0, 8, 6, 4, 1], data=[]), r'wanted \[-1'),
    (_v2(shape=[10**18, 8, 6, 4, 1]), 'does not hold INT16 of shape'),
    (_v2(data=[]), 'does not hold INT16'),
    (_v2(data=['text'] * 192), 'something else than numbers'),
    (_v2(data=[1.5] * 192), 'not int16'),
    (_v2(data=[70000] * 192), 'not int16'),
    (_v2(data=[None] * 192), 'something else than numbers'),
    (_v2() | {'outputs': [{'name': 'no'}]}, "'no' is not one of embedding"),
    (_v2() | {'outputs': [{'name': 'embedding'}] * 2}, 'two outputs'),
    (_v2() | {'parameters': {'signature_name': 'no'}}, 'wanted one of'),
    ({'inputs': _v2()['inputs'] * 2}, 'two inputs'),
  ],
)
def test_v2(server, message, reason):
  answer = httpx.post(server.url + _INFER, json=message)
  _refused(answer, 400, reason)


@pytest.mark.parametrize('data', [None, 0, 'text', {}])
def test_v2_strings_without_a_list(server, data):
  message = {
    'parameters': {'signature_name': 'embed_bytes'},
    'inputs': [
      {'name': 'bytes', 'shape': [1], 'datatype': 'BYTES', 'data': data}
    ],
  }
  answer = httpx.post(server.url + _INFER, json=message)
  _refused(answer, 400, 'bytes has no list of data')


def _binary(head, data=b'', length=None):
  head = head if isinstance(head, bytes) else json.dumps(head).encode()
  length = str(len(head)) if length is None else length
  return head + data, {'content-type': 'x/y', _LENGTH: length}


def _sized(size, kind='INT16', **changes):
  message = _v2(datatype=kind, parameters={'binary_data_size': size}, **changes)
  del message['inputs'][0]['data']
  return message


_CUBE_BYTES = bytes(_BYTES)


@pytest.mark.parametrize(
  ('content', 'headers'),
  [
    _binary(_sized(_BYTES), _CUBE_BYTES[:-1]),
    _binary(_sized(_BYTES), _CUBE_BYTES + b'1'),
    _binary(_sized(_BYTES - 2), _CUBE_BYTES[:-2]),
    _binary(_sized(_BYTES - 1), _CUBE_BYTES[:-1]),
    _binary(_sized(-2), b''),
    _binary(_sized('many'), _CUBE_BYTES),
    _binary(_sized(10**30), _CUBE_BYTES),
    _binary(_sized(_BYTES), _CUBE_BYTES, '-5'),
    _binary(_sized(_BYTES), _CUBE_BYTES, '1e9'),
    _binary(_sized(_BYTES), _CUBE_BYTES, '999999999'),
    _binary(_sized(_BYTES), _CUBE_BYTES, '10'),
    _binary(_sized(_BYTES, shape='8'), _CUBE_BYTES),
    _binary(_sized(_BYTES, name=['x']), _CUBE_BYTES),
    _binary(_sized(_BYTES) | {'parameters': 'signature_name'}, _CUBE_BYTES),
    _binary({'inputs': [1]}),
    _binary({'inputs': 5}),
    _binary([]),
    _binary(b'null'),
    _binary(pickle.dumps(_sized(_BYTES)), _CUBE_BYTES),
    _binary(
      {
        'parameters': {'signature_name': 'embed_bytes'},
        'inputs': [
          {
            'name': 'bytes',
            'shape': [1],
            'datatype': 'BYTES',
            'parameters': {'binary_data_size': 8},
          }
        ],
      },
      struct.pack('<I', 4_000_000_000) + b'abcd',
    ),
  ],
  ids=range(20),
)
def test_v2_binary(server, content, headers):
  answer = httpx.post(server.url + _INFER, content=content, headers=headers)
  assert answer.status_code == 400, answer.text
  assert list(answer.json()) == ['error']


def _stub(server):
  channel = grpc.insecure_channel(server.grpc)
  return grpc_predict_v2_pb2_grpc.GRPCInferenceServiceStub(channel)


def _grpc(raw=None, model='transvw', signature='embed_cubes_int16', **tensor):
  hu = serve_process.cubes(1)
  fields = {'name': 'cubes', 'shape': list(hu.shape), 'datatype': 'INT16'}
  return pb.ModelInferRequest(
    model_name=model,
    inputs=[fields | tensor],
    raw_input_contents=[] if raw is None else raw,
    parameters={'signature_name': pb.InferParameter(string_param=signature)},
  )


@pytest.mark.parametrize(
  ('request_', 'code'),
  [
    (_grpc(), 'INVALID_ARGUMENT'),
    (_grpc(raw=[b'']), 'INVALID_ARGUMENT'),
    (_grpc(raw=[_CUBE_BYTES[:-1]]), 'INVALID_ARGUMENT'),
    (_grpc(raw=[_CUBE_BYTES, b'']), 'INVALID_ARGUMENT'),
    (_grpc(raw=[_CUBE_BYTES], shape=[2, 8, 6, 4, 1]), 'INVALID_ARGUMENT'),
    (_grpc(raw=[_CUBE_BYTES], shape=[-1, 8, 6, 4, 1]), 'INVALID_ARGUMENT'),
    (_grpc(raw=[_CUBE_BYTES], datatype='FP32'), 'INVALID_ARGUMENT'),
    (_grpc(raw=[_CUBE_BYTES], datatype='PICKLE'), 'INVALID_ARGUMENT'),
    (_grpc(raw=[_CUBE_BYTES], name='x'), 'INVALID_ARGUMENT'),
    (_grpc(raw=[_CUBE_BYTES], signature='no'), 'INVALID_ARGUMENT'),
    (_grpc(raw=[_CUBE_BYTES], model='no'), 'NOT_FOUND'),
    (_grpc(raw=[b'1' * (2 << 20)]), 'RESOURCE_EXHAUSTED'),
    (
      _grpc(
        raw=[np.full(192, np.nan, np.float32).tobytes()],
        datatype='FP32',
        signature='embed_cubes',
      ),
      'INVALID_ARGUMENT',
    ),
  ],
  ids=range(13),
)
def test_grpc(server, request_, code):
  with pytest.raises(grpc.RpcError) as raised:
    _stub(server).ModelInfer(request_)
  assert raised.value.code().name == code
  assert raised.value.details()


@pytest.mark.parametrize(
  ('method', 'path', 'status'),
  [
    ('GET', '/nothing', 404),
    ('GET', '/v1/models/no', 404),
    ('POST', '/v1/models/no:predict', 404),
    ('POST', '/v1/models/transvw:explain', 404),
    ('POST', '/v2/models/no/infer', 404),
    ('POST', '/v2/models/transvw/versions/7/infer', 404),
    ('GET', '/v1/models/no/metadata', 404),
    ('GET', '/v1/models/..%2f..%2fetc', 404),
    ('DELETE', '/v1/models/transvw', 405),
    ('POST', '/v2/repository/models/transvw/unload', 403),
    ('POST', '/v2/repository/models/transvw/load', 403),
  ],
)
def test_paths(server, method, path, status):
  content = None
  if method == 'POST':
    content = json.dumps(_v2() | {'instances': _ZEROS})
  answer = httpx.request(
    method, server.url + path, content=content, headers=_JSON
  )
  assert answer.status_code == status, answer.text
  assert list(answer.json()) == ['error']


def test_grpc_clients_cannot_unload_the_model(server):
  with pytest.raises(grpc.RpcError) as raised:
    _stub(server).RepositoryModelUnload(
      pb.RepositoryModelUnloadRequest(model_name='transvw')
    )
  assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED


def _connect(server):
  place = parse.urlsplit(server.url)
  return socket.create_connection((place.hostname, place.port), timeout=30)


_HALF = (
  b'POST /v1/models/transvw:predict HTTP/1.1\r\nHost: x\r\n'
  b'Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"inst'
)


def test_a_body_sent_by_half_ends_in_time(server):
  with _connect(server) as connection:
    connection.sendall(_HALF)
    assert connection.recv(65536).startswith(b'HTTP/1.1 408')


@pytest.mark.parametrize('sent', [_HALF[:20], _HALF, b'\x16\x03\x01 no HTTP'])
def test_clients_that_hang_up(server, sent):
  for _ in range(20):
    with _connect(server) as connection:
      connection.sendall(sent)
