"""Cut, wrong and hostile files: one clear line, nothing run or written."""

import os
import pickle
import re
import resource
import sys
import warnings
import zipfile
import zlib

import h5py
import numpy as np
import pytest

from tests.convert import published_files
from transvw_tf2 import errors
from transvw_tf2.convert import files


def _refuse(path, tmp_path, match):
  """Checks that a file is refused and that its folder stays as it was."""
  before = sorted(os.listdir(tmp_path))
  with pytest.raises(errors.UserError, match=match) as raised:
    files.convert(str(path), str(tmp_path / 'ours.keras'))
  assert sorted(os.listdir(tmp_path)) == before
  assert len(str(raised.value)) < 1500
  return str(raised.value)


@pytest.fixture(name='official')
def _official(tmp_path):
  path = tmp_path / 'official.h5'
  published_files.write_h5(path, published_files.draw('y_net'))
  return path


def _layer(file, name='depth_2_conv'):
  return file['model_weights'][name][name]


def test_no_file(tmp_path):
  _refuse(tmp_path / 'none.h5', tmp_path, 'No such file')
  (tmp_path / 'folder').mkdir()
  _refuse(tmp_path / 'folder', tmp_path, r'no model\.json')


@pytest.mark.parametrize('content', [b'', b'text', b'\x89HDF', b'\x00' * 600])
def test_other_files(content, tmp_path):
  (tmp_path / 'a.h5').write_bytes(content)
  _refuse(tmp_path / 'a.h5', tmp_path, r'neither HDF5 \(\.h5\) nor of PyTorch')


@pytest.mark.parametrize('part', [0.001, 0.5, 0.999])
def test_cut_h5(part, official, tmp_path):
  content = official.read_bytes()
  official.write_bytes(content[: int(len(content) * part)])
  _refuse(official, tmp_path, 'cannot be read|is neither')


def test_damaged_h5_never_ends_in_another_error(official, tmp_path):
  """Bytes in the first part, where the structure lies, are overwritten."""
  content = official.read_bytes()
  rng = np.random.default_rng(0)
  refused = 0
  for _ in range(20):
    damaged = bytearray(content)
    for place in rng.integers(0, 20_000, 40):
      damaged[place] = rng.integers(0, 256)
    official.write_bytes(damaged)
    try:
      files.convert(str(official), str(tmp_path / 'ours.h5'))
    except errors.UserError:
      refused += 1
  assert refused > 10


def test_renamed_layer(official, tmp_path):
  with h5py.File(official, 'a') as file:
    root = file['model_weights']
    root.move('depth_9_conv', 'other')
    names = list(root.attrs['layer_names'].astype(str))
    names[names.index('depth_9_conv')] = 'other'
    root.attrs['layer_names'] = np.array(names, 'S')
  line = _refuse(official, tmp_path, 'lacks depth_9_conv/kernel')
  assert 'but has other/depth_9_conv/kernel:0' in line
  assert '--allow_missing decoder' in line


def test_a_layer_too_much(official, tmp_path):
  layers = published_files.draw('y_net')
  layers['dense_7'] = layers['cls_fc']
  published_files.write_h5(official, layers)
  _refuse(official, tmp_path, 'has dense_7/dense_7/kernel:0, dense_7/dense_7/b')


def test_a_weight_too_much(official, tmp_path):
  with h5py.File(official, 'a') as file:
    group = file['model_weights/depth_2_conv']
    group['depth_2_conv/gamma:0'] = np.zeros(4, np.float32)
    names = [*group.attrs['weight_names'], b'depth_2_conv/gamma:0']
    group.attrs['weight_names'] = np.array(names, 'S')
  _refuse(official, tmp_path, 'has depth_2_conv/depth_2_conv/gamma:0, of no la')


@pytest.mark.parametrize(
  'name', ['depth_0_conv', 'depth_3_bn', 'depth_10_conv', 'cls_fc']
)
def test_wrong_shape(name, official, tmp_path):
  layers = published_files.draw('y_net')
  wrong = layers[name][0][..., :-1]
  wanted = layers[name][0].shape
  layers[name][0] = wrong
  published_files.write_h5(official, layers)
  line = _refuse(official, tmp_path, 'is wanted')
  assert f'{name}/' in line
  assert f'{wrong.shape} where {wanted}' in line


def test_nan(official, tmp_path):
  with h5py.File(official, 'a') as file:
    _layer(file)['bias:0'][0] = np.nan
  _refuse(official, tmp_path, 'NaN or infinity in depth_2_conv/')


def test_no_keras_weights(official, tmp_path):
  with h5py.File(official, 'w') as file:
    file['scan'] = np.zeros((3, 3))
  _refuse(official, tmp_path, 'no attribute layer_names')
  with h5py.File(official, 'w') as file:
    file.attrs['layer_names'] = 3.0
  _refuse(official, tmp_path, 'is no list of names')
  with h5py.File(official, 'w') as file:
    file.attrs['layer_names'] = np.array([b'depth_0_conv'])
  _refuse(official, tmp_path, "names a layer 'depth_0_conv' but does not have")


@pytest.mark.parametrize(
  'name', ['/etc/passwd', '../depth_2_conv', 'none', '.']
)
def test_weight_names_that_lead_elsewhere(name, official, tmp_path):
  with h5py.File(official, 'a') as file:
    group = file['model_weights/depth_2_conv']
    group.attrs['weight_names'] = np.array([name, 'depth_2_conv/bias:0'], 'S')
  _refuse(official, tmp_path, 'but does not have it')


@pytest.mark.parametrize('kind', ['external', 'soft', 'virtual', 'raw', 'loop'])
def test_what_leads_out_of_the_file_is_not_opened(kind, official, tmp_path):
  # A pipe without a writer: whoever opened it would wait for ever.
  secret = str(tmp_path / 'secret.h5')
  os.mkfifo(secret)
  with h5py.File(official, 'a') as file:
    group = _layer(file)
    kernel = group['kernel:0']
    shape = kernel.shape
    del group['kernel:0']
    if kind == 'external':
      group['kernel:0'] = h5py.ExternalLink(secret, 'kernel')
    elif kind == 'soft':
      group['kernel:0'] = h5py.SoftLink('/model_weights/depth_4_conv')
    elif kind == 'virtual':
      layout = h5py.VirtualLayout(shape, np.float32)
      layout[...] = h5py.VirtualSource(secret, 'kernel', shape)
      group.create_virtual_dataset('kernel:0', layout)
    elif kind == 'raw':
      size = int(np.prod(shape)) * 4
      group.create_dataset(
        'kernel:0', shape, np.float32, external=[(secret, 0, size)]
      )
    else:
      group['kernel:0'] = file['model_weights']
  _refuse(official, tmp_path, 'not safe to read')


def test_an_external_link_anywhere_is_refused(official, tmp_path):
  with h5py.File(official, 'a') as file:
    file['optimizer_weights/more'] = h5py.ExternalLink('/etc/passwd', '/')
  _refuse(official, tmp_path, 'ExternalLink at /optimizer_weights/more')


def _most_memory():
  """Returns MB that this process has taken at most."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


@pytest.mark.parametrize(
  ('shape', 'chunks'),
  [
    ((3, 3, 3, 10**6, 10**6), (3, 3, 3, 1, 1)),
    ((3, 3, 3, 2**30, 2**34), (3, 3, 3, 1, 1)),
    ((3, 3, 3, 4, 10**8), None),
  ],
)
def test_huge_shapes_are_not_allocated(shape, chunks, official, tmp_path):
  with h5py.File(official, 'a') as file:
    group = _layer(file)
    del group['kernel:0']
    group.create_dataset('kernel:0', shape, np.float32, chunks=chunks)
  before = _most_memory()
  _refuse(official, tmp_path, 'declares .* bytes')
  assert _most_memory() - before < 100


@pytest.mark.parametrize('chunk', [2**27, 2**16])
def test_packed_arrays_are_not_unpacked(chunk, official, tmp_path):
  """2^27 numbers, as the chunk says, or more than it says."""
  packer = zlib.compressobj(9)
  packed = [packer.compress(bytes(2**20)) for _ in range(512)]
  with h5py.File(official, 'a') as file:
    group = _layer(file)
    del group['bias:0']
    bias = group.create_dataset(
      *('bias:0', (4,), np.float32),
      **{'maxshape': (None,), 'chunks': (chunk,), 'compression': 'gzip'},
    )
    bias.id.write_direct_chunk((0,), b''.join([*packed, packer.flush()]))
  before = _most_memory()
  _refuse(official, tmp_path, 'declares .* bytes|packed, which Keras never')
  assert _most_memory() - before < 100


def test_a_list_of_one_huge_name(official, tmp_path):
  """Strings of any length are references, and all may be the same one."""
  length, more = 2 * 10**6, 400
  with h5py.File(official, 'a') as file:
    names = ['other'] * more + ['x' * length]
    file['model_weights'].attrs['layer_names'] = names
  # A reference is 16 bytes, of which the first four are the length.
  small, large = (
    re.escape(one.to_bytes(4, 'little')) + b'.{12}' for one in (5, length)
  )
  content = official.read_bytes()
  references = re.search(
    b'(?:%s){%d}(%s)' % (small, more, large), content, re.S
  )
  one = references[1]
  official.write_bytes(content.replace(references[0], one * (more + 1)))
  before = _most_memory()
  _refuse(official, tmp_path, 'has 401 names in up to 200.* not safe to read')
  assert _most_memory() - before < 100


@pytest.mark.parametrize('kind', ['objects', 'int', 'complex', 'null', 'text'])
def test_other_types(kind, official, tmp_path):
  with h5py.File(official, 'a') as file:
    group = _layer(file)
    kernel = group['kernel:0'][()]
    del group['kernel:0']
    if kind == 'objects':
      made = group.create_dataset('kernel:0', kernel.shape, h5py.ref_dtype)
      made[0, 0, 0, 0, 0] = file['model_weights'].ref
    elif kind == 'text':
      group['kernel:0'] = np.full(kernel.shape, 'x', h5py.string_dtype())
    elif kind == 'null':
      group['kernel:0'] = h5py.Empty(np.float32)
    else:
      group['kernel:0'] = kernel.astype({'int': int, 'complex': complex}[kind])
  _refuse(official, tmp_path, 'wanted floating point numbers')


class _Executes:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


def test_pickled_code_is_never_run(tmp_path):
  torch = pytest.importorskip('torch')
  made = tmp_path / 'made'
  path = tmp_path / 'official.pt'
  layers = published_files.draw('torch')

  def check():
    assert 'nothing in it was run' in _refuse(path, tmp_path, 'cannot be read')
    assert not made.exists()

  for protocol in (2, 4):
    path.write_bytes(pickle.dumps(_Executes(str(made)), protocol))
    check()
  published_files.write_pt(path, layers, best_loss=_Executes(str(made)))
  check()
  torch.save({'state_dict': _Executes(str(made))}, path)  # a zip archive
  check()
  torch.save(torch.nn.Linear(2, 2), path)
  check()
  # The same under the name of another format.
  path = tmp_path / 'official.h5'
  path.write_bytes(pickle.dumps(_Executes(str(made)), 2))
  check()
  pickle.loads(path.read_bytes())  # it would have worked
  assert made.exists()


class _Asks:
  """Pickles as a call; such as weights_only lets through."""

  def __init__(self, function, *arguments):
    self._call = (function, arguments)

  def __reduce__(self):
    return self._call


@pytest.mark.parametrize('old', [True, False])
@pytest.mark.parametrize('kind', ['bytearray', 'number of NumPy'])
def test_no_memory_is_taken_that_the_file_does_not_have(old, kind, tmp_path):
  torch = pytest.importorskip('torch')
  size = 1 << 30
  if kind == 'bytearray':
    asks, line = _Asks(bytearray, size), 'asks for memory without end'
  else:
    dtype = _Asks(np.dtype, f'V{size}')
    asks = _Asks(np._core.multiarray.scalar, dtype)
    line = 'a number of type'
  path = tmp_path / 'official.pt'
  torch.save(
    {'state_dict': {}, 'more': [asks] * 3},
    path,
    _use_new_zipfile_serialization=not old,
  )
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert 'nothing in it was run' in _refuse(path, tmp_path, line)
  taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert taken * 1024 < size // 2


@pytest.mark.parametrize('kind', ['old', 'zip', 'zip64'])
def test_a_text_of_that_name_is_none(kind, tmp_path):
  torch = pytest.importorskip('torch')
  path = tmp_path / 'official.pt'
  state = published_files.torch_state(published_files.draw('torch'))
  torch.save(
    {'state_dict': state, 'note': 'a bytearray'},
    path,
    _use_new_zipfile_serialization=kind != 'old',
  )
  if kind == 'zip':  # of another writer, that leaves out what is for 4 GB
    content = path.read_bytes()
    path.write_bytes(content[:-98] + content[-22:])
  assert len(files.read(str(path)).tensors)


def test_two_directories_are_refused(tmp_path):
  """Python would see one, and PyTorch the other."""
  torch = pytest.importorskip('torch')
  path = tmp_path / 'official.pt'
  asks = _Asks(bytearray, 1 << 30)
  torch.save({'state_dict': {}, 'more': [asks]}, path)
  content = path.read_bytes()
  ends = content[-98:]
  start = int.from_bytes(content[-6:-2], 'little')
  other = content[start:-98].replace(b'.pkl', b'.pxl')
  for shown in (
    content[:-98] + other + ends,
    content[:-98] + other + content[-22:],
    content + b'PK\x05\x06' + bytes(18),
    content[:-2] + b'\x04\x00more',
  ):
    path.write_bytes(shown)
    said = _refuse(path, tmp_path, 'of the zip|is not a zip|cannot be read')
    assert 'nothing in it was run' in said


@pytest.mark.parametrize('part', [0.01, 0.5, 0.999])
@pytest.mark.parametrize('old', [True, False])
def test_cut_pt(part, old, tmp_path):
  torch = pytest.importorskip('torch')
  path = tmp_path / 'official.pt'
  state = published_files.torch_state(published_files.draw('torch'))
  torch.save(
    {'state_dict': state}, path, _use_new_zipfile_serialization=not old
  )
  content = path.read_bytes()
  path.write_bytes(content[: int(len(content) * part)])
  _refuse(path, tmp_path, 'cannot be read')


def _nested(bias):
  import torch

  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # nested tensors may change
    return torch.nested.nested_tensor([bias, bias[:1]])


@pytest.mark.parametrize(
  ('key', 'change', 'line'),
  [
    ('clc_out.fc1.bias', None, r'lacks clc_out\.fc1\.bias'),
    ('more.weight', lambda bias: bias, 'has more.weight, of no layer'),
    ('module.clc_out.fc1.bias', lambda bias: bias, 'two tensors cls_output/bi'),
    ('clc_out.fc1.bias', lambda bias: bias.int(), 'wanted floating point'),
    ('clc_out.fc1.bias', lambda bias: bias.to_sparse(), 'wanted dense num'),
    ('clc_out.fc1.bias', lambda bias: bias.to('meta'), 'on device meta as'),
    ('clc_out.fc1.bias', _nested, 'strided, nested, wanted dense numbers'),
    ('clc_out.fc1.bias', lambda bias: bias[:1], r'\(1,\) where \(3,\)'),
    ('clc_out.fc1.bias', lambda bias: bias[:1].expand(10**12), 'declares'),
    ('epoch', lambda bias: 3, 'has no state_dict of tensors'),
  ],
)
def test_wrong_state_dicts(key, change, line, tmp_path):
  torch = pytest.importorskip('torch')
  state = published_files.torch_state(published_files.draw('torch'))
  bias = state.pop('clc_out.fc1.bias')
  if change:
    state |= {'clc_out.fc1.bias': bias} | {key: change(bias)}
  torch.save({'state_dict': state}, tmp_path / 'official.pt')
  _refuse(tmp_path / 'official.pt', tmp_path, line)


def test_a_dictionary_that_holds_itself(tmp_path):
  torch = pytest.importorskip('torch')
  state = {}
  state['state_dict'] = [state]
  torch.save(state, tmp_path / 'official.pt')
  _refuse(tmp_path / 'official.pt', tmp_path, 'has no state_dict of tensors')
  torch.save({'state_dict': {}}, tmp_path / 'official.pt')
  _refuse(tmp_path / 'official.pt', tmp_path, 'has no layers depth_0_conv')


@pytest.mark.parametrize('kind', ['lists', 'dictionaries', 'name', 'key'])
def test_depths_and_names_without_end(kind, tmp_path):
  torch = pytest.importorskip('torch')
  stored = torch.zeros(1)
  says = 'not safe to read'
  if kind == 'name':
    stored = {'x' * 10_000: stored}
  elif kind == 'key':
    says = 'has no state_dict of tensors'
    key = ()
    for _ in range(3000):
      key = (key,)
    stored = {key: stored}
  else:
    for _ in range(3000):
      stored = [stored] if kind == 'lists' else {'x': stored}
  # Its own pickler goes no deeper.
  room = sys.getrecursionlimit()
  sys.setrecursionlimit(20_000)
  try:
    torch.save({'more': stored}, tmp_path / 'official.pt')
  finally:
    sys.setrecursionlimit(room)
  line = _refuse(tmp_path / 'official.pt', tmp_path, says)
  assert len(line) < 300 + len(str(tmp_path))


def test_tensors_of_one_name_all_count(tmp_path):
  torch = pytest.importorskip('torch')
  one = torch.zeros(1)
  name = 'depth_0.weight'
  huge = {'state_dict': {name: one.expand(10**12)}, f'state_dict.{name}': one}
  torch.save(huge, tmp_path / 'official.pt')
  _refuse(tmp_path / 'official.pt', tmp_path, 'declares 4000000000004 bytes')


def test_without_pytorch(tmp_path, monkeypatch):
  (tmp_path / 'official.pt').write_bytes(pickle.dumps({}, 2))
  monkeypatch.setitem(sys.modules, 'torch', None)
  line = _refuse(tmp_path / 'official.pt', tmp_path, 'not installed')
  assert line.endswith("pip install 'transvw-tf2[torch]'")


def test_an_unsafe_pytorch_is_not_used(tmp_path, monkeypatch):
  torch = pytest.importorskip('torch')
  (tmp_path / 'official.pt').write_bytes(pickle.dumps({}, 2))
  monkeypatch.setattr(torch, '__version__', '2.5.1')
  _refuse(tmp_path / 'official.pt', tmp_path, r'2\.6 or later .* found 2\.5\.1')


def test_damaged_keras_file(official, tmp_path):
  path = tmp_path / 'network.keras'
  files.convert(str(official), str(path))
  content = path.read_bytes()
  other = tmp_path / 'cut.keras'
  other.write_bytes(content[: len(content) // 2])
  _refuse(other, tmp_path, 'cannot be|is neither')
  other.write_bytes(content.replace(b'VisualWordNet', b'VisualWordNit'))
  _refuse(other, tmp_path, 'cannot be loaded')


def test_a_name_in_an_archive_that_is_not_what_it_says(tmp_path):
  pytest.importorskip('torch')
  path = tmp_path / 'a.pt'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('caf\u00e9', b'')
  # Said to be UTF-8.
  path.write_bytes(path.read_bytes().replace('\u00e9'.encode(), b'\xff\xff'))
  _refuse(path, tmp_path, 'cannot be read')
