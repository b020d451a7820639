"""Files of weights: HDF5 of Keras 2, PyTorch, .keras."""

import importlib.util
import io
import json
import os
import pickle

import h5py
import numpy as np

from tests.convert import published_files
from tests.fuzz import files as files_lib
from tests.fuzz import mutations
from tests.fuzz import targets
from transvw_tf2 import errors
from transvw_tf2 import file_size
from transvw_tf2 import h5_arrays
from transvw_tf2.convert import files
from transvw_tf2.convert import keras_h5
from transvw_tf2.convert import network
from transvw_tf2.convert import torch_pt
from transvw_tf2.models import unet3d
from transvw_tf2.models import word_classifier
from transvw_tf2.training import keras_file

_DEPTH = 2


def _draw(decoder=True, head=False, transposed=False, skips=True):
  """Returns weights of a published network of two levels, by layer."""
  made = published_files.Draw()
  made.encoder(1, _DEPTH)
  if decoder:
    made.decoder(1, _DEPTH, skips=skips, transposed=transposed)
  if head:
    made.block(4 * _DEPTH - 2, 4, 6)
    if not transposed:
      made.conv('cls_fc', 6, 7)
    made.conv('cls_output', 6 if transposed else 7, 3)
  if not decoder:
    made.conv('dense_1', 4, 3)
  return made.layers


def _write_h5(folder, whole=True, **kind):
  published_files.write_h5(
    os.path.join(folder, 'x.h5'), _draw(**kind), whole=whole
  )


def _read_weights(name):
  def read(folder):
    path = os.path.join(folder, name)
    network.fit(files.read(path), ())

  return read


def _h5(rng, data):
  """Changes what an HDF5 file holds: attributes, arrays, links."""
  if rng.integers(2):
    return _h5_bytes(rng, data)
  buffer = io.BytesIO(data)
  try:
    with h5py.File(buffer, 'r+') as file:
      _change_h5(rng, file)
  except Exception:  # h5py raises many kinds for what was damaged before
    return mutations.random_bytes(rng, data)
  return buffer.getvalue()


def _h5_bytes(rng, data):
  """Damages bytes, more often where there is structure than numbers."""
  if rng.integers(2):
    return mutations.random_bytes(rng, data)
  marks = [b'TREE', b'HEAP', b'SNOD', b'\x89HDF', b'weight_names', b'OHDR']
  mark = mutations.choose(rng, marks)
  places = []
  at = data.find(mark)
  while at >= 0 and len(places) < 200:
    places.append(at)
    at = data.find(mark, at + 1)
  at = mutations.choose(rng, places or [0]) + int(rng.integers(64))
  new = mutations.integer_bytes(rng)
  return data[:at] + new + data[at + len(new) :]


def _change_h5(rng, file):
  root = file.get('model_weights', file)
  groups = [name for name in root if len(root[name])]
  group = root[mutations.choose(rng, groups)]
  inner = group[next(iter(group))]
  name = mutations.choose(rng, sorted(inner))
  kind = int(rng.integers(12))
  array = inner[name][()]
  if kind == 0:
    holder = mutations.choose(rng, [root, group])
    attribute = 'layer_names' if holder is root else 'weight_names'
    holder.attrs[attribute] = _h5_names(rng, holder.attrs[attribute])
    return
  if kind == 1:
    del root[mutations.choose(rng, groups)]
    return
  if kind == 2:
    root.move(group.name, mutations.value_text(rng)[:300].strip('/') or 'x')
    return
  if kind == 3:
    root.attrs[mutations.value_text(rng)[:60]] = mutations.value_text(rng)[:60]
    return
  del inner[name]
  if kind == 4:
    inner[name] = mutations.choose(
      rng,
      [h5py.SoftLink('/'), h5py.ExternalLink('/etc/passwd', '/x')]
      + [h5py.SoftLink(group.name), h5py.ExternalLink('../outside/x', '/')],
    )
  elif kind == 5:
    shape = mutations.choose(
      rng, [(10**6,) * 3, (2**40,), (0,), (), (1,) * 30, (2**20, 2**20)]
    )
    inner.create_dataset(
      name, shape, 'f4', chunks=bool(shape) and 0 not in shape
    )
  elif kind == 6:
    dtype = mutations.choose(rng, ['i4', 'f2', 'f8', 'c8', 'S9', '>f4', 'u1'])
    inner.create_dataset(name, data=np.zeros(array.shape, dtype))
  elif kind == 7:
    filled = np.full(array.shape, mutations.choose(rng, [np.nan, np.inf, 1e38]))
    inner.create_dataset(name, data=filled.astype('f4'))
  elif kind == 8:
    axis = int(rng.integers(array.ndim))
    wrong = np.repeat(array, mutations.choose(rng, [0, 2, 3]), axis)
    inner.create_dataset(name, data=wrong)
  elif kind == 9:
    settings = {'compression': 'gzip', 'chunks': (1,) * array.ndim}
    inner.create_dataset(name, data=array, shuffle=True, **settings)
  elif kind == 10:
    inner.create_group(name)
  else:
    inner.create_dataset(name, data=array.ravel())


def _h5_names(rng, names):
  names = [
    one.decode() if isinstance(one, bytes) else str(one) for one in names
  ]
  kind = int(rng.integers(6))
  if kind == 0:
    return 3.0
  if kind == 1:
    return np.array([names, names], 'S')
  at = int(rng.integers(max(len(names), 1)))
  if kind == 2:
    names[at:at] = names[at : at + 1] * mutations.choose(rng, [1, 300])
  elif kind == 3:
    names[at : at + 1] = []
  else:
    names[at : at + 1] = [mutations.value_text(rng)[:60].replace('\0', 'x')]
  return np.array([mutations.encode(one) for one in names], 'S')


def _write_pt(folder, zipped=False, **kind):
  import torch

  path = os.path.join(folder, 'x.pt')
  published_files.write_pt(path, published_files.draw('torch', 1), **kind)
  if zipped:
    with torch.serialization.safe_globals([np.dtype]):
      stored = torch.load(path, weights_only=False)
    torch.save(stored, path)


class _System:
  """Pickles to a command."""

  def __reduce__(self):
    return os.system, (f'mkdir {mutations.CANARY}',)


class _Eval:
  """Pickles to an expression."""

  def __reduce__(self):
    return eval, (f"__import__('os').mkdir({mutations.CANARY!r})",)


def _pickle(rng, data):
  """Changes the program of a pickle, or puts another one in its place."""
  kind = int(rng.integers(8))
  if kind == 0:
    thing = mutations.choose(
      rng, [mutations.MakeCanary(), _System(), _Eval(), [{'a': _System()}]]
    )
    state = {'state_dict': thing, 'epoch': 3}
    return pickle.dumps(state, int(rng.integers(2, 6)))
  if kind == 1:
    thing = mutations.choose(
      rng,
      [{}, [], 'x', {'state_dict': {}}, {'state_dict': {'a': 1}}, 3]
      + [{'state_dict': {3: None}}, {'state_dict': [1, 2]}, {'a' * 9000: 1}],
    )
    return pickle.dumps(thing, 2)
  at = int(rng.integers(max(len(data), 1)))
  if kind == 2:
    # Opcodes that make objects, call functions or take from the memory.
    op = mutations.choose(
      rng,
      [b'cos\nsystem\n', b'R', b'b', b'h\xff', b'j\xff\xff\xff\x7f', b'.']
      + [b'(', b'Q', b'\x81', b'cbuiltins\neval\n', b'ctorch.load\nx\n', b'}']
      + [
        b'\x8a\xff' + b'\x7f' * 255,
        b'B\xff\xff\xff\x7f',
        b'X\xff\xff\xff\x7f',
      ],
    )
    return data[:at] + op + data[at:]
  if kind == 3:
    return mutations.struct_field(
      rng, data, [(at, '<i'), (at, '<q'), (at, 'b')]
    )
  return mutations.random_bytes(rng, data)


def _pt_member(rng, data, name):
  return (_pickle if name.endswith('.pkl') else mutations.random_bytes)(
    rng, data
  )


def _pt(rng, data):
  if data[:2] == b'PK':
    return mutations.zip_members(rng, data, _pt_member)
  return _pickle(rng, data)


def _write_keras(folder, decoder=False):
  # To make one again takes 80 or 130 ms, most of the time of a case.
  sizes = {'base_filters': 1, 'depth': 2}
  if decoder:
    model = unet3d.UNet3D(**sizes)
  else:
    model = word_classifier.WordClassifier(3, **sizes)
  model.build((None, None, None, None, 1))
  model.save(os.path.join(folder, 'x.keras'))


# What files that run code, or lead elsewhere, have for a class.
_CLASSES = (
  *(('keras.layers', 'Lambda'), ('os', 'system'), ('subprocess', 'Popen')),
  *(('builtins', 'eval'), ('keras.layers', 'TorchModuleWrapper')),
  *(('keras.utils', 'get_file'), ('transvw_tf2.mains', 'run')),
  *(('keras', 'Sequential'), ('keras.layers', 'TFSMLayer'), ('keras', 'Model')),
  *(('keras.models', 'load_model'), ('keras.layers', 'StringLookup')),
)


def _keras_member(rng, data, name):
  if name.endswith('.h5'):
    return _h5_bytes(rng, data)
  if name != 'config.json' or rng.integers(2):
    return mutations.json_value(rng, data)
  try:
    config = json.loads(data)
  except ValueError:  # it was damaged before
    return mutations.random_bytes(rng, data)
  module, kind = mutations.choose(rng, _CLASSES)
  hostile = {
    'module': module,
    'class_name': kind,
    'registered_name': mutations.choose(
      rng, [None, kind, f'transvw_tf2>{kind}']
    ),
    'config': {
      'name': 'x',
      'function': {
        'class_name': '__lambda__',
        'config': {'code': '4wAAAAAA', 'defaults': None, 'closure': None},
      },
      'command': f'mkdir {mutations.CANARY}',
      'args': [f'mkdir {mutations.CANARY}'],
      'filepath': '/etc/passwd',
      'vocabulary': '/etc/passwd',
      'origin': 'file:///etc/passwd',
      'layers': [],
    },
    'build_config': {'input_shape': [None, 1]},
  }
  if rng.integers(2):
    return json.dumps(hostile).encode()
  keys = sorted(config['config'])
  sizes = [
    10**4,
    10**6,
    30,
    99,
    0,
    -1,
    2.5,
    True,
    '2',
    None,
    hostile,
    [hostile],
  ]
  config['config'][mutations.choose(rng, keys)] = mutations.choose(rng, sizes)
  return json.dumps(config).encode()


def _keras(rng, data):
  return mutations.zip_members(rng, data, _keras_member)


_USER = (errors.UserError,)
_H5 = targets.Target(
  name='weights .h5',
  seeds=files_lib.seeds_of(
    _write_h5,
    {'head': True},
    {'whole': False},
    {'decoder': False},
    {'transposed': True, 'skips': False},
  ),
  mutate=files_lib.mutate_with({'': _h5}),
  read=_read_weights('x.h5'),
  errors=_USER,
  modules=(keras_h5, network, file_size, h5_arrays),
  leaves_out=frozenset(
    ('write', '_keras_order', 'build', '_build_variant', 'from_model')
  ),
  heavy=True,
)
_PT = targets.Target(
  name='weights .pt',
  seeds=files_lib.seeds_of(
    _write_pt,
    {},
    {'zipped': True},
    {'prefix': 'module.', 'more': ('projection_head.weight',)},
  ),
  mutate=files_lib.mutate_with({'': _pt}),
  read=_read_weights('x.pt'),
  errors=_USER,
  modules=(torch_pt, network, file_size),
  leaves_out=frozenset(
    ('write', 'build', '_build_variant', 'from_model', '_import_torch')
  ),
  heavy=True,
)
_KERAS = targets.Target(
  name='weights .keras',
  seeds=files_lib.seeds_of(_write_keras, {}, {}, {}, {'decoder': True}),
  mutate=files_lib.mutate_with({'': _keras}),
  read=_read_weights('x.keras'),
  errors=_USER,
  modules=(files, keras_file, file_size, h5_arrays),
  leaves_out=frozenset(
    ('convert', '_write_keras', '_output_format', '_describe')
  ),
  heavy=True,
)
# PyTorch is no requirement of the package.
_HAS_TORCH = importlib.util.find_spec('torch') is not None
TARGETS = (_H5, *((_PT,) if _HAS_TORCH else ()), _KERAS)
