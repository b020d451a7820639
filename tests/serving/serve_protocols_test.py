"""The same vectors by every protocol, and signatures that nobody foresaw."""

import base64
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.serving import serve_process
from transvw_tf2.serving import client as client_lib

kserve = pytest.importorskip('kserve', reason=serve_process.SKIPPED)
import grpc  # noqa: E402, KServe brings these
import httpx  # noqa: E402
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb  # noqa: E402
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc  # noqa: E402

_PREDICT = '/v1/models/transvw:predict'
_INFER = '/v2/models/transvw/infer'


@pytest.fixture(name='exported', scope='module')
def _exported(tmp_path_factory):
  path = tmp_path_factory.mktemp('model') / 'model'
  return path, serve_process.export_encoder(path)


@pytest.fixture(name='server', scope='module')
def _server(exported, tmp_path_factory):
  folder = tmp_path_factory.mktemp('server')
  with serve_process.running(exported[0], folder) as server:
    yield server


@pytest.fixture(name='toys', scope='module')
def _toys(tmp_path_factory):
  folder = tmp_path_factory.mktemp('toys')
  serve_process.export_toy(folder / 'model')
  with serve_process.running(folder / 'model', folder) as server:
    yield server


@pytest.fixture(name='want', scope='module')
def _want(exported):
  """What the Keras model gives for the cubes of `serve_process.cubes`."""
  hu = serve_process.cubes().astype(np.float64)
  scaled = (np.clip(hu, -1000, 1000) + 1000) / 2000
  want = exported[1].embed(scaled.astype(np.float32)).numpy()
  assert np.ptp(want) > 1e-3
  return want


def _post(server, path, message):
  answer = httpx.post(server.url + path, json=message, timeout=60)
  assert answer.status_code == 200, answer.text
  return answer.json()


def _same(got, want):
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def _strings(hu):
  return [cube.astype('<i2').tobytes() for cube in hu]


def _stub(server):
  channel = grpc.insecure_channel(server.grpc)
  return grpc_predict_v2_pb2_grpc.GRPCInferenceServiceStub(channel)


def test_saved_model(exported, want):
  loaded = tf.saved_model.load(str(exported[0]))
  hu = tf.constant(serve_process.cubes())
  got = loaded.signatures['embed_cubes_int16'](cubes=hu)['embedding']
  _same(got.numpy(), want)


@pytest.mark.parametrize('signature', [None, 'embed_cubes'])
def test_v1_floats(server, want, signature):
  message = {'instances': serve_process.cubes().astype(float).tolist()}
  if signature:
    message['signature_name'] = signature
  got = _post(server, _PREDICT, message)
  _same(got['predictions'], want)


def test_v1_int16_rows_by_name(server, want):
  rows = [{'cubes': cube.tolist()} for cube in serve_process.cubes()]
  message = {'signature_name': 'embed_cubes_int16', 'instances': rows}
  _same(_post(server, _PREDICT, message)['predictions'], want)


@pytest.mark.parametrize('named', [False, True])
def test_v1_int16_columns(server, want, named):
  columns = serve_process.cubes().tolist()
  got = _post(
    server,
    _PREDICT,
    {
      'signature_name': 'embed_cubes_int16',
      'inputs': {'cubes': columns} if named else columns,
    },
  )
  _same(got['outputs'], want)


@pytest.mark.parametrize('form', ['instances', 'inputs'])
def test_v1_bytes(server, want, form):
  strings = [
    {'b64': base64.b64encode(one).decode()}
    for one in _strings(serve_process.cubes())
  ]
  message = {'signature_name': 'embed_bytes', form: strings}
  got = _post(server, _PREDICT, message)
  _same(got['predictions' if form == 'instances' else 'outputs'], want)


@pytest.mark.parametrize(
  ('signature', 'kind'), [(None, 'FP32'), ('embed_cubes_int16', 'INT16')]
)
def test_v2_json(server, want, signature, kind):
  hu = serve_process.cubes()
  message = {
    'id': 'mine',
    'inputs': [
      {
        'name': 'cubes',
        'shape': list(hu.shape),
        'datatype': kind,
        'data': hu.ravel().tolist(),
      }
    ],
  }
  if signature:
    message['parameters'] = {'signature_name': signature}
  got = _post(server, _INFER, message)
  assert got['id'] == 'mine'
  (output,) = got['outputs']
  assert (output['name'], output['datatype']) == ('embedding', 'FP32')
  _same(np.reshape(output['data'], output['shape']), want)


def _request(signature, kind, array, **parameters):
  """Returns a request whose tensor is binary."""
  name = 'bytes' if kind == 'BYTES' else 'cubes'
  given = kserve.InferInput(name, list(array.shape), kind)
  given.set_data_from_numpy(array, binary_data=True)
  return kserve.InferRequest(
    'transvw', [given], parameters={'signature_name': signature, **parameters}
  )


_BINARY = pytest.mark.parametrize(
  ('signature', 'kind'),
  [
    ('embed_cubes', 'FP32'),
    ('embed_cubes_int16', 'INT16'),
    ('embed_bytes', 'BYTES'),
  ],
)


def _tensor(kind):
  hu = serve_process.cubes()
  if kind == 'BYTES':
    return np.array(_strings(hu), object)
  return hu.astype(np.float32) if kind == 'FP32' else hu


@_BINARY
@pytest.mark.parametrize('binary_output', [False, True])
def test_v2_binary(server, want, signature, kind, binary_output):
  request = _request(
    signature, kind, _tensor(kind), binary_data_output=binary_output
  )
  body, length = request.to_rest()
  answer = httpx.post(
    server.url + _INFER,
    content=body,
    headers={
      'content-type': 'application/octet-stream',
      'inference-header-content-length': str(length),
    },
  )
  assert answer.status_code == 200, answer.text
  if binary_output:
    length = int(answer.headers['inference-header-content-length'])
    got = kserve.InferResponse.from_bytes(answer.content, length).outputs[0]
    _same(got.as_numpy(), want)
  else:
    output = answer.json()['outputs'][0]
    _same(np.reshape(output['data'], output['shape']), want)


@_BINARY
def test_grpc_raw(server, want, signature, kind):
  request = _request(signature, kind, _tensor(kind)).to_grpc()
  assert request.raw_input_contents
  answer = _stub(server).ModelInfer(request)
  assert answer.raw_output_contents
  got = kserve.InferResponse.from_grpc(answer).outputs[0].as_numpy()
  _same(got, want)


@pytest.mark.parametrize(
  ('signature', 'kind'), [('embed_cubes', 'FP32'), ('embed_bytes', 'BYTES')]
)
def test_grpc_contents(server, want, signature, kind):
  array = _tensor(kind)
  name = 'bytes' if kind == 'BYTES' else 'cubes'
  given = kserve.InferInput(
    name, list(array.shape), kind, array.ravel().tolist()
  )
  request = kserve.InferRequest(
    'transvw', [given], parameters={'signature_name': signature}
  )
  answer = _stub(server).ModelInfer(request.to_grpc())
  _same(kserve.InferResponse.from_grpc(answer).outputs[0].as_numpy(), want)


def test_client(server, want):
  client = client_lib.Client(server.url, batch_size=2)
  assert client.is_ready()
  hu = serve_process.cubes()
  got = client.embed_cubes(hu)
  assert got.dtype == np.float32
  _same(got, want)
  _same(client.embed_cubes(hu[..., 0].astype(float)), want)
  _same(client.infer(cubes=hu.astype(np.float32))['embedding'], want)
  assert client.metadata()['transvw_model']['cube_shape'] == [8, 6, 4]


def test_client_names_what_is_wrong(server):
  client = client_lib.Client(server.url)
  with pytest.raises(client_lib.ServerError, match='400: cubes is INT16'):
    client.infer(cubes=serve_process.cubes())
  with pytest.raises(ValueError, match='NaN'):
    client.embed_cubes(np.full((1, *serve_process.CUBE), np.nan))
  with pytest.raises(ValueError, match=r'wanted \(B, X, Y, Z\)'):
    client.embed_cubes(np.zeros(serve_process.CUBE))
  with pytest.raises(ValueError, match='wanted such as http'):
    client_lib.Client('gpu-machine')
  assert not client_lib.Client('http://127.0.0.1:1').is_ready()


def test_client_needs_no_tensorflow():
  done = subprocess.run(
    [
      *(sys.executable, '-c'),
      'import sys; from transvw_tf2.serving import client; '
      'print(sorted({"tensorflow", "keras", "kserve"} & set(sys.modules)))',
    ],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == '[]'


def test_status_metadata_health_and_metrics(server):
  got = httpx.get(server.url + '/v1/models/transvw').json()
  assert got['model_version_status'][0]['state'] == 'AVAILABLE'
  got = httpx.get(server.url + '/v1/models/transvw/metadata').json()
  assert got['model_spec']['name'] == 'transvw'
  defined = got['metadata']['signature_def']['signature_def']
  assert set(defined) == {
    *('serving_default', 'embed_cubes', 'embed_cubes_int16', 'embed_bytes'),
  }
  cubes = defined['embed_cubes_int16']['inputs']['cubes']
  assert cubes['dtype'] == 'DT_INT16'
  sizes = [one['size'] for one in cubes['tensor_shape']['dim']]
  assert sizes == ['-1', '8', '6', '4', '1']
  for path in ('live', 'ready'):
    assert httpx.get(f'{server.url}/v2/health/{path}').status_code == 200
  got = httpx.get(server.url + '/v2/models/transvw').json()
  assert got['inputs'][0]['shape'] == [-1, 8, 6, 4, 1]
  _post(server, _PREDICT, {'instances': serve_process.cubes(1).tolist()})
  metrics = httpx.get(server.url + '/metrics').text
  assert 'transvw_batch_items_count{signature="serving_default"}' in metrics
  assert 'request_predict_seconds' in metrics


def test_grpc_health_and_metadata(server):
  stub = _stub(server)
  assert stub.ServerLive(pb.ServerLiveRequest()).live
  assert stub.ServerReady(pb.ServerReadyRequest()).ready
  assert stub.ModelReady(pb.ModelReadyRequest(name='transvw')).ready
  got = stub.ModelMetadata(pb.ModelMetadataRequest(name='transvw'))
  assert list(got.inputs[0].shape) == [-1, 8, 6, 4, 1]


def test_several_inputs_and_outputs(toys):
  rows = [{'a': [1, 2], 'b': 3}, {'a': [0.5, 0], 'b': -1}]
  message = {'signature_name': 'two', 'instances': rows}
  got = _post(toys, _PREDICT, message)
  assert got == {
    'predictions': [{'sum': 6.0, 'twice': 6}, {'sum': -0.5, 'twice': -2}]
  }
  columns = {'a': [[1, 2], [0.5, 0]], 'b': [3, -1]}
  got = _post(toys, _PREDICT, {'signature_name': 'two', 'inputs': columns})
  assert got == {'outputs': {'sum': [6.0, -0.5], 'twice': [6, -2]}}
  got = _post(
    toys,
    _INFER,
    {
      'parameters': {'signature_name': 'two'},
      'inputs': [
        {'name': 'b', 'shape': [1], 'datatype': 'INT32', 'data': [3]},
        {'name': 'a', 'shape': [1, 2], 'datatype': 'FP32', 'data': [1, 2]},
      ],
      'outputs': [{'name': 'twice'}],
    },
  )
  assert [(one['name'], one['data']) for one in got['outputs']] == [
    ('twice', [6])
  ]


def test_strings_in_and_out(toys):
  rows = ['grün', {'b64': base64.b64encode(b'a\0').decode()}]
  message = {'signature_name': 'echo', 'instances': rows}
  got = _post(toys, _PREDICT, message)['predictions']
  assert got[0]['text'] == 'grün'
  assert base64.b64decode(got[1]['raw_bytes']['b64']) == b'a\0'


def test_what_has_no_batch_is_left_out(toys):
  assert 'signature unbatched is not served' in toys.log()
  answer = httpx.post(
    toys.url + _PREDICT,
    json={'signature_name': 'unbatched', 'instances': [1]},
  )
  assert answer.status_code == 400
  assert 'wanted one of echo, picky, slow, two' in answer.json()['error']


def test_what_the_model_refuses_fails_no_neighbour(toys):
  message = {'signature_name': 'picky', 'instances': [4.0, -1.0, 9.0]}
  got = _post(toys, _PREDICT, message)['predictions']
  assert (got[0], got[2]) == (2.0, 3.0)
  assert 'value is negative' in got[1]['error']


def test_a_bad_item_fails_no_neighbour(server, want):
  rows = serve_process.cubes().astype(float)
  bad = [np.full((*serve_process.CUBE, 1), np.nan).tolist(), [1, 2], 'text']
  content = json.dumps(
    {'instances': [rows[0].tolist(), *bad, *rows[1:].tolist()]}
  )
  answer = httpx.post(server.url + _PREDICT, content=content)
  assert answer.status_code == 200
  got = answer.json()['predictions']
  _same([got[0], *got[4:]], want)
  errors = [one['error'] for one in got[1:4]]
  assert 'NaN' in errors[0]
  assert 'shape 2, wanted 8 x 6 x 4 x 1' in errors[1]
  assert 'something else than numbers' in errors[2]
