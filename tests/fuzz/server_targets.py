"""What the server is sent, and the small files of runs, exports and studies."""

import asyncio
import io
import json
import os
import struct
import types
from unittest import mock
import zipfile

from google.protobuf import message
import kserve
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import servicer
import numpy as np
import tensorflow as tf

from beam_jobs import embedding_files
from tests.fuzz import files as files_lib
from tests.fuzz import mutations
from tests.fuzz import scan_targets
from tests.fuzz import targets
from tests.scans import scan_files
from tests.study import study_rows
from transvw_tf2 import errors
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import luna16
from transvw_tf2.serving import embed
from transvw_tf2.serving import signatures
from transvw_tf2.serving.server import infer_v2
from transvw_tf2.serving.server import kserve_model
from transvw_tf2.serving.server import request_errors
from transvw_tf2.serving.server import rest_v1
from transvw_tf2.serving.server import scan_uploads
from transvw_tf2.serving.server import served_model
from transvw_tf2.serving.server import validation
from transvw_tf2.study import tables
from transvw_tf2.training import reports

_CUBE = (4, 3, 2)
_MOST_BYTES = 1 << 20


def _write_upload(folder, kind='zip'):
  hu = scan_files.make_hu((8, 7, 6))
  path = os.path.join(folder, 'body')
  suffix = '.mhd' if kind == 'zip' else f'.{kind}'
  scan_files.write(os.path.join(folder, f'x{suffix}'), hu)
  if kind == 'zip':
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
      for name in 'x.mhd', 'x.raw':
        archive.write(os.path.join(folder, name), name)
        os.remove(os.path.join(folder, name))
  else:
    os.rename(os.path.join(folder, f'x{suffix}'), path)


def _read_upload(folder):
  # The server takes what it wrote to a file of its own.
  with open(os.path.join(folder, 'body'), 'rb') as file:
    hu = scan_uploads.read(file, (4, 4, 4), _MOST_BYTES)
  assert hu.dtype == np.int16 and hu.size * 2 <= _MOST_BYTES
  assert not (hu == scan_targets.SECRET).all(), 'a file outside was read'


def _upload_member(rng, data, name):
  damage = (
    scan_targets.meta if name.endswith('.mhd') else mutations.random_bytes
  )
  return damage(rng, data)


def _pack_again(rng, data):
  """Packs the members by another method, or with one that is too large."""
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      members = {one: archive.read(one) for one in archive.namelist()}
  except Exception:  # zipfile raises many kinds for what was damaged before
    return mutations.random_bytes(rng, data)
  if rng.integers(2):
    members['large.raw'] = bytes(2 * _MOST_BYTES)
  method = mutations.choose(
    rng, (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
  )
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', method) as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return file.getvalue()


def _upload(rng, data):
  if data[:2] == b'PK':
    if not rng.integers(8):
      return _pack_again(rng, data)
    return mutations.zip_members(rng, data, _upload_member)
  if data[:2] == b'\x1f\x8b':
    return scan_targets.nifti_gz(rng, data)
  if data[:4] == b'NRRD':
    return scan_targets.nrrd(rng, data)
  if data[:4] == b'\x5c\x01\x00\x00':
    return scan_targets.nifti(rng, data)
  return scan_targets.meta(rng, data)


def _signature(name, dtype, tf_dtype, shape, item_bytes=None):
  given = served_model.Tensor(
    'bytes' if item_bytes else 'cubes',
    *(tf_dtype, np.dtype(dtype), shape, item_bytes),
  )
  out = served_model.Tensor(
    'embedding', tf.float32, np.dtype(np.float32), (2,), None
  )
  return served_model.Signature(
    name, None, {given.name: given}, {out.name: out}
  )


class _Model:
  """Stands for a model that is loaded, with the signatures of an encoder."""

  default = signatures.EMBED_CUBES
  signatures = {  # noqa: RUF012
    one.name: one
    for one in (
      _signature('embed_cubes', np.float32, tf.float32, (*_CUBE, 1)),
      _signature('embed_cubes_int16', np.int16, tf.int16, (*_CUBE, 1)),
      _signature('embed_bytes', object, tf.string, (), 2 * np.prod(_CUBE)),
    )
  }
  signature = served_model.ServedModel.signature


class _Queue:
  """Stands for the queue: checks what the model would get."""

  def check_count(self, count):
    assert count >= 0

  async def submit(self, name, items, *, wait=False):
    for item in items:
      for tensor in _Model.signatures[name].inputs.values():
        array = item[tensor.name]
        assert array.dtype == tensor.dtype and array.shape == tensor.shape
    return [{'embedding': np.zeros(2, np.float32)} for _ in items]


_SERVED = kserve_model.BatchingModel('transvw', _Model(), _Queue(), 1.0)
_PLANE = kserve_model.DataPlane(kserve.ModelRepository())


def _answer(payload):
  return asyncio.run(_SERVED.predict(payload))


def _write_v1(folder, form='instances', kind='cubes'):
  rng = np.random.default_rng(0)
  cubes = rng.integers(-999, 999, (2, *_CUBE, 1))
  message = {form: cubes.tolist(), 'signature_name': f'embed_{kind}'}
  if kind == 'bytes':
    message[form] = [{'b64': 'A' * (4 * 2 * 24 // 3)}] * 2
  with open(os.path.join(folder, 'body'), 'w') as file:
    json.dump(message, file)


def _read_body(folder):
  with open(os.path.join(folder, 'body'), 'rb') as file:
    return file.read()


def _read_v1(folder):
  payload, _ = _PLANE.decode(_read_body(folder), {}, 'v1')
  json.dumps(_answer(payload))


def _v2_message(kind, binary):
  cubes = np.random.default_rng(0).normal(size=(2, *_CUBE, 1))
  dtype = np.int16 if kind == 'INT16' else np.float32
  data = (100 * cubes).astype(dtype)
  one = {'name': 'cubes', 'shape': list(data.shape), 'datatype': kind}
  signature = 'embed_cubes_int16' if kind == 'INT16' else 'embed_cubes'
  raw = data.tobytes()
  if kind == 'BYTES':
    raw = struct.pack('<i', 48) + bytes(48)
    one |= {'name': 'bytes', 'shape': [1]}
    signature = 'embed_bytes'
  if binary:
    one['parameters'] = {'binary_data_size': len(raw)}
  else:
    one['data'] = data.ravel().tolist()
  message = {
    'id': '7',
    'inputs': [one],
    'parameters': {'signature_name': signature},
    'outputs': [{'name': 'embedding', 'parameters': {'binary_data': True}}],
  }
  return message, raw


def _write_v2(folder, kind='FP32', binary=True):
  message, raw = _v2_message(kind, binary)
  text = json.dumps(message).encode()
  files = {'json': text} if not binary else {'json': text, 'tensors': raw}
  if binary:
    files['length'] = str(len(text)).encode()
  for name, content in files.items():
    with open(os.path.join(folder, name), 'wb') as file:
      file.write(content)


def _mutate_v2(rng, files):
  changed = _V2(rng, files)
  if 'length' in files and rng.integers(3):
    # Right again, or all cases would end at it.
    changed['length'] = str(len(changed.get('json', b''))).encode()
  return changed


_V2 = files_lib.mutate_with(
  {
    'json': mutations.json_value,
    'length': mutations.text_tokens,
    '': mutations.random_bytes,
  }
)


def _read_v2(folder):
  parts = files_lib.load(folder)
  body = parts.get('json', b'') + parts.get('tensors', b'')
  headers = {'content-type': 'application/json'}
  if 'tensors' in parts:
    length = parts.get('length', b'').decode('latin-1')
    headers = {'inference-header-content-length': length}
    payload, _ = _PLANE.decode(body, headers, 'v2', 'transvw')
    response = _answer(payload)
    response.to_rest()


def _write_grpc(folder, kind='FP32', raw=True):
  message, data = _v2_message(kind, True)
  (one,) = message['inputs']
  request = pb.ModelInferRequest(model_name='transvw', id='7')
  given = request.inputs.add(
    name=one['name'], datatype=kind, shape=one['shape']
  )
  request.parameters['signature_name'].string_param = message['parameters'][
    'signature_name'
  ]
  if raw:
    request.raw_input_contents.append(data)
  elif kind == 'BYTES':
    given.contents.bytes_contents.append(bytes(48))
  elif kind == 'INT16':
    given.contents.int_contents.extend(np.frombuffer(data, np.int16).tolist())
  else:
    given.contents.fp32_contents.extend(
      np.frombuffer(data, np.float32).tolist()
    )
  with open(os.path.join(folder, 'body'), 'wb') as file:
    file.write(request.SerializeToString())


def _grpc(rng, data):
  if not rng.integers(2):
    return mutations.random_bytes(rng, data)
  try:
    request = pb.ModelInferRequest.FromString(data)
    given = request.inputs[0]
  except (message.DecodeError, IndexError):  # it was damaged before
    return mutations.random_bytes(rng, data)
  kind = int(rng.integers(7))
  if kind == 0:
    given.datatype = mutations.choose(
      rng, ['FP32', 'INT16', 'BYTES', 'BOOL', 'FP16', 'BF16', 'INT64', 'x', '']
    )
  elif kind == 1:
    shape = mutations.choose(
      rng,
      [[0], [], [-1, 4, 3, 2, 1], [2**62, 4], [1], [2, 4, 3, 2], [2**31] * 5],
    )
    del given.shape[:]
    given.shape.extend(shape)
  elif kind == 2:
    request.inputs.append(given)
  elif kind == 3:
    given.name = mutations.value_text(rng).encode('utf-8', 'replace').decode()
  elif kind == 4:
    request.raw_input_contents.extend([b'', b'abc', bytes(192)])
  elif kind == 5:
    given.contents.int64_contents.extend([1, 2**40])
  else:
    request.outputs.add(name='x')
  return request.SerializeToString()


def _read_grpc(folder):
  request = pb.ModelInferRequest.FromString(_read_body(folder))
  try:
    servicer.InferenceServicer.validate_grpc_request(request)
    decoded = kserve.InferRequest.from_grpc(request)
  except kserve.errors.InvalidInput as error:
    # As the server answers it.
    raise request_errors.RequestError(str(error)) from error
  response = _answer(decoded)
  response.to_grpc()


def _write_description(folder):
  with open(os.path.join(folder, signatures.METADATA_FILE), 'w') as file:
    json.dump(
      {
        'version': 1,
        'cube_shape': list(_CUBE),
        'signatures': {'embed_cubes': {'inputs': {}, 'outputs': {}}},
        'words': ['a', 'b'],
        'training': {'epoch': 3, 'val_loss': 0.5},
      },
      file,
    )
  with open(os.path.join(folder, 'saved_model.pb'), 'w'):
    pass


class _Function:
  """Stands for a signature of a SavedModel that was loaded."""

  def __init__(self, name, dtype, shape):
    given = {name: tf.TensorSpec((None, *shape), dtype)}
    self.structured_input_signature = ((), given)
    self.structured_outputs = {'embedding': tf.TensorSpec((None, 2))}


_LOADED = types.SimpleNamespace(
  signatures={
    'embed_cubes': _Function('cubes', tf.float32, (*_CUBE, 1)),
    'embed_bytes': _Function('bytes', tf.string, ()),
  }
)


def _read_description(folder):
  # The SavedModel is a program, and trusted; the file beside it is not.
  with mock.patch.object(tf.saved_model, 'load', return_value=_LOADED):
    model = served_model.ServedModel(folder)
  rest_v1.metadata('transvw', model)
  item = model.signatures['embed_bytes'].inputs['bytes']
  array = np.array(bytes(2 * np.prod(_CUBE)), object)
  validation.check_item(array, item)


def _write_history(folder):
  with open(os.path.join(folder, reports.HISTORY_FILE), 'w') as file:
    file.write('epoch,loss,validation/loss,seconds\n')
    file.write('1,0.5,0.6,10.5\n2,0.4,,11\n3,0.3,0.5,inf\n')


def _read_history(folder):
  for row in reports.read_history(folder):
    assert isinstance(row['epoch'], int)


def _write_rows(folder):
  study_rows.make_rows(study_rows.VALUES).to_csv(
    os.path.join(folder, 'rows.csv'), index=False
  )


_ROWS = files_lib.mutate_with({'': mutations.csv_cells})


def _mutate_rows(rng, files):
  # A study that has not begun has no file.
  return _ROWS(rng, files) if rng.integers(50) else {}


def _read_rows(folder):
  rows = tables.read_rows(os.path.join(folder, 'rows.csv'))
  assert not rows.duplicated(tables.NETWORK).any()


def _write_embeddings(folder):
  settings = embedding_files.Settings('abc', _CUBE, (2, 2, 2), 5)
  embedding_files.prepare_folder(folder, settings)
  places = np.arange(9, dtype=np.int32).reshape(3, 3)
  embeddings = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  for name in 'a', 'b':
    embedding_files.write_scan(
      folder,
      luna16.ScanFile(name, f'{name}.mhd', 'train'),
      geometry_lib.Geometry((16, 15, 14)),
      embed.ScanEmbedding(places, embeddings, embeddings.mean(axis=0)),
      _CUBE,
    )


def _read_embeddings(folder):
  settings = embedding_files.read_settings(folder)
  for scan_id in embedding_files.list_scans(folder):
    count = embedding_files.count_places(folder, scan_id)
    scan = embedding_files.read_scan(folder, scan_id)
    assert len(scan.embeddings) == len(scan.places) == count
    assert scan.embeddings.ndim == 2 and settings.embedding_size
    scan.geometry.voxel_to_world([0, 0, 0])
    embedding_files.middle_voxels(scan.places, settings.cube_shape)


def _parquet(rng, data):
  """Changes the columns of a table, or the bytes of its file."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  if rng.integers(2):
    return _parquet_bytes(rng, data)
  try:
    table = pq.read_table(io.BytesIO(data))
  except (OSError, pa.ArrowException):
    return mutations.random_bytes(rng, data)
  at = int(rng.integers(table.num_columns))
  name, rows = table.column_names[at], table.num_rows
  kind = int(rng.integers(7))
  if kind == 0:
    table = table.drop_columns([name])
  elif kind == 1:
    table = table.set_column(at, name, pa.nulls(rows, table.schema.types[at]))
  elif kind == 2:
    column = mutations.choose(
      rng,
      [['x'] * rows, [1.5] * rows, [[1.0]] * rows, [[]] * rows]
      + [[[None, 1.0]] * rows, [2**40] * rows, [-1] * rows, [b'\xff'] * rows]
      + [[{'a': 1}] * rows, [[1.0] * 9] * rows, [[float('nan')] * 3] * rows]
      + [[[1.0] * (3 + row) for row in range(rows)], [0] * rows, [None] * rows],
    )
    table = table.set_column(at, name, pa.array(column))
  elif kind == 3:
    table = table.slice(0, mutations.choose(rng, [0, 1]))
  elif kind == 4:
    table = pa.concat_tables([table] * mutations.choose(rng, [2, 50]))
  elif kind == 5:
    names = [*table.column_names]
    names[at] = mutations.choose(rng, [names[0], 'x', '', 'embedding'])
    table = table.rename_columns(names)
  else:
    table = table.set_column(
      at, name, table.column(int(rng.integers(len(table.column_names))))
    )
  buffer = io.BytesIO()
  pq.write_table(
    table,
    buffer,
    compression=mutations.choose(rng, ['none', 'snappy', 'gzip', 'zstd']),
  )
  return buffer.getvalue()


def _parquet_bytes(rng, data):
  if rng.integers(2) or len(data) < 20:
    return mutations.random_bytes(rng, data)
  # Its metadata lie at the end.
  (length,) = struct.unpack('<I', data[-8:-4])
  start = max(0, len(data) - 8 - length)
  return data[:start] + mutations.random_bytes(rng, data[start:-8]) + data[-8:]


_REQUEST = (request_errors.RequestError,)
_USER = (errors.UserError,)


def _target(name, seeds, mutate, read, expected, *modules, leaves_out=()):
  return targets.Target(
    *(name, seeds, mutate, read, expected, modules, frozenset(leaves_out)),
    heavy=True,
  )


TARGETS = (
  _target(
    'uploaded scan',
    files_lib.seeds_of(
      _write_upload,
      *({'kind': kind} for kind in ('zip', 'mha', 'nii', 'nii.gz', 'nrrd')),
      {'kind': 'zip'},
    ),
    files_lib.mutate_with({'': _upload}),
    _read_upload,
    _REQUEST,
    scan_uploads,
  ),
  _target(
    'V1 JSON',
    files_lib.seeds_of(
      _write_v1,
      *(
        {'form': form, 'kind': kind}
        for form in ('instances', 'inputs')
        for kind in ('cubes', 'cubes_int16', 'bytes')
      ),
    ),
    files_lib.mutate_with({'': mutations.json_value}),
    _read_v1,
    _REQUEST,
    *(rest_v1, validation),
    leaves_out=('status', 'metadata', '_describe', '_encode_strings'),
  ),
  _target(
    'V2 binary tensors',
    files_lib.seeds_of(
      _write_v2, *({'kind': kind} for kind in ('FP32', 'INT16', 'BYTES'))
    ),
    _mutate_v2,
    _read_v2,
    _REQUEST,
    *(infer_v2, validation),
  ),
  _target(
    'V2 gRPC',
    files_lib.seeds_of(
      _write_grpc,
      *(
        {'kind': kind, 'raw': raw}
        for kind in ('FP32', 'INT16', 'BYTES')
        for raw in (True, False)
      ),
    ),
    files_lib.mutate_with({'': _grpc}),
    _read_grpc,
    # What gRPC itself answers where there is no message.
    (*_REQUEST, message.DecodeError),
    infer_v2,
  ),
  _target(
    'transvw_model.json',
    files_lib.seeds_of(_write_description),
    files_lib.mutate_with(
      {'.json': mutations.json_value, '': lambda rng, data: data}
    ),
    _read_description,
    (*_USER, *_REQUEST),
    served_model,
    leaves_out=('signature', 'run', '_call', '_load'),
  ),
  _target(
    'history.csv',
    files_lib.seeds_of(_write_history),
    files_lib.mutate_with({'': mutations.csv_cells}),
    _read_history,
    _USER,
    reports,
    leaves_out=(
      one
      for one in vars(reports)
      if callable(getattr(reports, one)) and one != 'read_history'
    ),
  ),
  _target(
    'rows.csv of a study',
    files_lib.seeds_of(_write_rows),
    _mutate_rows,
    _read_rows,
    _USER,
    tables,
    leaves_out=(
      one
      for one in vars(tables)
      if callable(getattr(tables, one)) and one != 'read_rows'
    ),
  ),
  _target(
    'embeddings',
    files_lib.seeds_of(_write_embeddings),
    files_lib.mutate_with(
      {'.json': mutations.json_value, '.parquet': _parquet}
    ),
    _read_embeddings,
    _USER,
    embedding_files,
    leaves_out=(
      *('prepare_folder', '_check_same', '_text', 'write_scan', '_to_lists'),
      *('_write', 'find_paths', 'check_folder', 'bytes_of'),
    ),
  ),
)
