"""The PyTorch release: a state_dict in a file of torch.save.

A dictionary of epoch, state_dict, optimizer_state_dict and more, in the old
format that is no zip archive; only state_dict is of use. PyTorch is an optional
package (`pip install 'transvw-tf2[torch]'`), and it reads with
`weights_only=True`: no code in a file is ever run.

In the release batches are normalised by their own statistics in evaluation too;
the running ones are in the file and are converted.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import io
import os
import pickletools
import re
import struct
import warnings
import zipfile

import numpy as np

from transvw_tf2 import errors
from transvw_tf2 import file_size
from transvw_tf2 import output_file
from transvw_tf2.convert import layers as layers_lib
from transvw_tf2.convert import network as network_lib
from transvw_tf2.convert import report
from transvw_tf2.models import torch_variant

_STATE = 'state_dict'
# Of DataParallel and of the classifier around the network.
_PREFIXES = ('module.', 'classficationNet.')
_COUNTER = 'num_batches_tracked'
_REASONS = (
  (f'.{_COUNTER}', 'counts batches, of no use with a fixed momentum'),
  ('projection_head.', 'used in pre-training only'),
  ('prototypes.', 'used in pre-training only'),
)
_NOTE = (
  'batch normalisation: converted with the running statistics; the PyTorch'
  ' release normalises each batch by its own statistics, in evaluation too, so'
  ' that its outputs differ: transvw_tf2.convert.load(path,'
  ' batch_statistics=True) does the same'
)
# Of what is in the file, with all that it is in; the release's have up to 60.
_MAX_NAME = 1000
_ZIP = b'PK\x03\x04'
# Of a zip file (APPNOTE 4.3.14 to 4.3.16): where its directory is; last come
# its length and its offset, in the last record before the length of a comment.
_END_64 = struct.Struct('<4sQ2H2L4Q')
_LOCATOR = struct.Struct('<4sLQL')
_END = struct.Struct('<4s4H2LH')
# In a file of the old format: magic number, version, system, what is stored
# and the keys of the tensors.
_PICKLES = 5
# Before it, weights_only could be made to run code (CVE-2025-32434).
_SAFE_VERSION = (2, 6)


def read(path: str) -> network_lib.Source:
  """Reads the weights of a file without running anything in it.

  Args:
    path: what torch.save wrote: a state_dict, or a dictionary with one.

  Returns:
    Its tensors, by the names of layers.table.

  Raises:
    errors.UserError: PyTorch is missing, or the file is cut or holds more than
      tensors and numbers.
  """
  torch = _import_torch(path)
  stored = _load(torch, path)
  # Not by name: one in a dictionary may look like one that is deeper.
  found = list(_tensors(torch, stored, path))
  declared = sum(one.numel() * one.element_size() for _, one in found)
  file_size.check(path, declared)
  state, prefix = stored, ''
  if isinstance(stored, Mapping) and _STATE in stored:
    state, prefix = stored[_STATE], f'{_STATE}.'
  if not isinstance(state, Mapping) or not all(
    isinstance(key, str) and isinstance(value, torch.Tensor)
    for key, value in state.items()
  ):
    raise errors.UserError(
      f'{path} has no {_STATE} of tensors, wanted the PyTorch release of'
      ' TransVW or Models Genesis (.pt)'
    )
  names = _our_names(state)
  tensors, ignored = [], []
  for key, tensor in state.items():
    plain = _strip(key)
    why = next((why for part, why in _REASONS if part in f'.{plain}'), None)
    if why:
      ignored.append(report.left_out(key, tensor.shape, why))
      continue
    if not tensor.dtype.is_floating_point:
      raise errors.UserError(
        f'{path} has {key} of type {tensor.dtype}, wanted floating point'
        ' numbers'
      )
    module, _, weight = plain.rpartition('.')
    layer, weight = names.get(plain, (module, weight))
    array = tensor.detach().to(torch.float32).numpy()
    array = np.ascontiguousarray(layers_lib.from_torch(array))
    tensors.append(network_lib.Tensor(key, layer, weight, array))
  ignored += [
    report.left_out(name, tensor.shape, 'not of the network')
    for name, tensor in found
    if prefix and not name.startswith(prefix)
  ]
  return network_lib.Source(
    path=path,
    tensors=tensors,
    ignored=ignored,
    epsilon=torch_variant.EPSILON,
    notes=[_NOTE],
  )


def write(path: str, network: network_lib.Network) -> dict[str, str]:
  """Writes a network as the PyTorch release has it, in the old format.

  Args:
    path: file to write.
    network: of the kind of the release.

  Returns:
    Name in the file by name here, both of weights.

  Raises:
    errors.UserError: PyTorch is missing, it is another kind of network, or the
      file cannot be written.
  """
  torch = _import_torch(path)
  rows = layers_lib.table(network.sizes)
  if not network.is_torch or not all(row.module for row in rows):
    raise errors.UserError(
      f'{path}: a .pt file holds the network of the PyTorch release (transposed'
      ' upsampling, a head of one dense layer, epsilon 1e-5), and this is that'
      ' of Keras: write .keras or .h5'
    )
  state, targets = {}, {}
  for row in rows:
    for weight, array in network.weights[row.name].items():
      key = row.torch_name(weight)
      values = np.array(layers_lib.to_torch(array), order='C')
      state[key] = torch.from_numpy(values)
      targets[row.weight_name(weight)] = key
    if 'gamma' in row.shapes:
      state[f'{row.module}.{_COUNTER}'] = torch.tensor(0)
  # torch.save itself raises many kinds on a disk that is full.
  content = io.BytesIO()
  torch.save({_STATE: state}, content, _use_new_zipfile_serialization=False)
  output_file.write(path, content.getbuffer())
  return targets


def _import_torch(path):
  """Returns the module torch; imported here, for it is optional and slow."""
  install = "pip install 'transvw-tf2[torch]'"
  try:
    import torch
  except ImportError as error:
    raise errors.UserError(
      f'{path} is of PyTorch, which is not installed: {install}'
    ) from error
  version = tuple(
    int(part) for part in re.findall(r'\d+', torch.__version__)[:2]
  )
  if version < _SAFE_VERSION:
    raise errors.UserError(
      f'{path} needs PyTorch 2.6 or later to be read safely, found'
      f' {torch.__version__}: {install} --upgrade'
    )
  return torch


def _load(torch, path):
  """Returns what is stored: dictionaries, numbers and tensors, or an error."""
  # Numbers of NumPy 1 and 2, which the release keeps its best loss in.
  numbers = [
    (_number_type, 'numpy.dtype'),
    type(np.dtype('float64')),
    type(np.dtype('float32')),
    type(np.dtype('int64')),
    *(
      (np._core.multiarray.scalar, f'numpy.{core}.multiarray.scalar')
      for core in ('core', '_core')
    ),
  ]
  try:
    _check_directory(path)
    with (
      contextlib.suppress(zipfile.BadZipFile),
      zipfile.ZipFile(path) as archive,
    ):
      file_size.check(path, sum(one.file_size for one in archive.infolist()))
    _check_pickles(path)
    with torch.serialization.safe_globals(numbers), warnings.catch_warnings():
      warnings.simplefilter('ignore')  # an error is one line
      return torch.load(path, map_location='cpu', weights_only=True)
  except errors.UserError:
    raise
  # Both raise many kinds for a broken file.
  except Exception as error:
    raise errors.UserError(
      f'{path} cannot be read without running code in it, or is cut'
      f' ({" ".join(str(error).split())[:160]}): nothing in it was run; wanted'
      ' weights of PyTorch (.pt)'
    ) from error


def _number_type(text: object, *_: object) -> np.dtype:
  """Makes the type of a number of NumPy; of text it would be of any size."""
  dtype = np.dtype(text)
  if dtype.kind not in 'biuf':
    raise ValueError(f'a number of type {text!r:.80}')
  return dtype


def _check_pickles(path: str) -> None:
  """Checks that reading a file takes no memory that the file does not have.

  PyTorch calls what does no harm, bytearray among it, with any number.

  Raises:
    errors.UserError: that would be called.
    ValueError: it holds no pickles; and as zipfile says.
  """
  with open(path, 'rb') as file:
    # Where PyTorch looks too.
    if file.read(len(_ZIP)) != _ZIP:
      file.seek(0)
      for _ in range(_PICKLES):
        _check_pickle(file, path)
      return
    with zipfile.ZipFile(file) as archive:
      for one in archive.infolist():
        if one.filename.lower().endswith('.pkl'):
          with archive.open(one) as stream:
            _check_pickle(stream, path)


def _check_pickle(stream, path) -> None:
  for code, argument, _ in pickletools.genops(stream):
    if code.name == 'GLOBAL' and argument.split()[-1:] == ['bytearray']:
      raise errors.UserError(
        f'{path} asks for memory without end (bytearray): it is not safe to'
        ' read, and nothing in it was run'
      )
    if code.name == 'STACK_GLOBAL':
      raise ValueError('its pickle is of a later protocol than PyTorch writes')


def _check_directory(path: str) -> None:
  """Checks that a zip file has one directory, where all readers look.

  Python goes by its length and PyTorch by its offset, so that each could be
  shown another.

  Raises:
    ValueError: it has not.
  """
  with open(path, 'rb') as file:
    if file.read(len(_ZIP)) != _ZIP:
      return
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END_64.size - _LOCATOR.size - _END.size))
    content = file.read()
  end = size - _END.size
  *found, comment = _END.unpack(content[-_END.size :])
  directories = [found[-2:]]
  content = content[: -_END.size]
  if content[-_LOCATOR.size :].startswith(b'PK\x06\x07'):
    end -= _LOCATOR.size + _END_64.size
    *_, place, _ = _LOCATOR.unpack(content[-_LOCATOR.size :])
    whole = _END_64.unpack(content[: _END_64.size])
    if place != end or whole[0] != b'PK\x06\x06':
      raise ValueError('the end of the zip is not where it says')
    # What the shorter record cannot hold, it leaves to the other.
    directories = [
      [
        two if one == 0xFFFFFFFF else one
        for one, two in zip(found[-2:], whole[-2:], strict=True)
      ],
      whole[-2:],
    ]
  if (
    found[0] != b'PK\x05\x06'
    or comment
    or any(length + offset != end for length, offset in directories)
  ):
    raise ValueError('the directory of the zip is not where it says')


def _tensors(torch, stored, path) -> Iterator[tuple[str, object]]:
  """Yields the tensors in what is stored, with where they are.

  Raises:
    errors.UserError: one is of another kind than numbers in memory, or its name
      has no end.
  """
  # No recursion: a file may nest as deep as it likes.
  waiting, seen = [('', stored)], set()
  while waiting:
    name, item = waiting.pop()
    if len(name) > _MAX_NAME:
      raise errors.UserError(
        f'{path} has too long a name or too much within one another, at'
        f' {name[:40]}..: it is not safe to read'
      )
    if isinstance(item, torch.Tensor):
      _check_dense(torch, item, name, path)
      yield name, item
      continue
    if id(item) in seen:  # it may hold itself
      continue
    seen.add(id(item))
    if isinstance(item, Mapping):
      below = (
        (key if isinstance(key, str | int) else type(key).__name__, value)
        for key, value in item.items()
      )
    elif isinstance(item, list | tuple):
      below = enumerate(item)
    else:
      continue
    start = f'{name}.' if name else ''
    inner = [(f'{start}{key}', value) for key, value in below]
    waiting += reversed(inner)  # so that the first is next


def _check_dense(torch, tensor, name, path) -> None:
  """Checks that a tensor has a shape and numbers, before they are asked for."""
  if (
    tensor.device.type != 'cpu'
    or tensor.layout != torch.strided
    or tensor.is_nested
  ):
    raise errors.UserError(
      f'{path} has {name} on device {tensor.device.type} as {tensor.layout}'
      f'{", nested" * tensor.is_nested}, wanted dense numbers'
    )


def _strip(key: str) -> str:
  while key.startswith(_PREFIXES):
    key = key.partition('.')[2]
  return key


def _our_names(state) -> dict[str, tuple[str, str]]:
  """Returns layer and weight by key without prefixes."""
  keys = '\n'.join(map(_strip, state))
  # Modules are named for 64 * 2^level; the decoder has a level less.
  levels = [
    int(filters).bit_length() - 7 + (kind == 'up')
    for kind, filters in re.findall(r'^(down|up)_tr(\d{1,6})\.', keys, re.M)
  ]
  whole = layers_lib.Sizes(
    base_filters=1,
    depth=max(levels, default=0) + 1,
    has_decoder=True,
    transposed=True,
    num_words=1,
    head_filters=1,
  )
  return {
    row.torch_name(weight): (row.name, weight)
    for row in layers_lib.table(whole)
    for weight in row.shapes
  }
