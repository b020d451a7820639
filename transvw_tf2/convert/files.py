"""Reads and writes files of weights, whatever their format."""

from collections.abc import Collection
import dataclasses
import os
import zipfile

import h5py

from transvw_tf2 import errors
from transvw_tf2 import output_file
from transvw_tf2.convert import keras_h5
from transvw_tf2.convert import layers as layers_lib
from transvw_tf2.convert import network as network_lib
from transvw_tf2.convert import report
from transvw_tf2.convert import torch_pt
from transvw_tf2.training import checkpoints
from transvw_tf2.training import keras_file

KERAS, H5, PT = 'keras', 'h5', 'pt'
FORMATS = (KERAS, H5, PT)
_SUFFIXES = {
  '.keras': KERAS,
  **dict.fromkeys(('.h5', '.hdf5'), H5),
  **dict.fromkeys(('.pt', '.pth'), PT),
}
_KERAS_CONFIG = 'config.json'
_ZIP_START = b'PK\x03\x04'
# A zip archive, a pickle of protocol 2 to 5.
_TORCH_STARTS = (_ZIP_START, *(b'\x80' + bytes([n]) for n in range(2, 6)))
_RUNNING = (
  'batch normalisation: that batches are normalised by their own statistics'
  ' (batch_statistics) is left out: Keras takes the running ones of this file'
)


@dataclasses.dataclass(frozen=True)
class Conversion:
  """What a conversion did.

  Attributes:
    rows: one for every tensor of the input.
    notes: lines for the user: what network it is, what to know about it.
  """

  rows: list[report.Row]
  notes: list[str]


def read(path: str) -> network_lib.Source:
  """Reads weights of any format, which the content tells.

  Args:
    path: an official .h5, a .pt of the PyTorch release, a .keras file or the
      folder of a run, whose best checkpoint is taken.

  Raises:
    errors.UserError: there is nothing, or nothing of these.
  """
  if os.path.isdir(path):
    model, _ = checkpoints.load_model(path)
    return network_lib.from_model(model, path)
  try:
    with open(path, 'rb') as file:
      start = file.read(4)
  except OSError as error:
    raise errors.UserError(
      f'{path} cannot be read ({error.strerror}): wanted a file of weights'
      ' (.h5, .pt, .keras) or the --workdir of a run'
    ) from error
  if h5py.is_hdf5(path):
    return keras_h5.read(path)
  if _is_keras(path):
    return network_lib.from_model(keras_file.load_network(path), path)
  if start.startswith(_ZIP_START) and not zipfile.is_zipfile(path):
    # Of Keras or of PyTorch: that is told at its end.
    raise errors.UserError(
      f'{path} cannot be read, its end is lost: download it again'
    )
  if start.startswith(_TORCH_STARTS):
    return torch_pt.read(path)
  raise errors.UserError(
    f'{path} is neither HDF5 (.h5) nor of PyTorch (.pt) nor of Keras (.keras),'
    ' or its beginning is lost: download it again'
  )


def _is_keras(path) -> bool:
  try:
    with zipfile.ZipFile(path) as archive:
      return _KERAS_CONFIG in archive.namelist()
  except (zipfile.BadZipFile, ValueError, NotImplementedError):
    return False


def convert(
  source: str,
  output: str,
  output_format: str | None = None,
  allow_missing: Collection[str] = (),
) -> Conversion:
  """Converts weights from any format to any that can hold them.

  Args:
    source: see `read`.
    output: file to write; replaced if it is there.
    output_format: one of FORMATS; by default that of the name of `output`.
    allow_missing: 'head', 'decoder': parts that may be missing in the source or
      not whole, and are then in the output neither.

  Raises:
    errors.UserError: the source cannot be read whole, or the output cannot be
      written; nothing is then.
  """
  output_format = _output_format(output, output_format)
  wrong = set(allow_missing) - set(network_lib.MAY_BE_MISSING)
  if wrong:
    raise errors.UserError(
      f'--allow_missing {",".join(sorted(wrong))}: wanted'
      f' {" or ".join(network_lib.MAY_BE_MISSING)}, for nothing is of use'
      ' without an encoder'
    )
  found = read(source)
  network = network_lib.fit(found, allow_missing)
  if os.path.exists(output) and os.path.samefile(source, output):
    raise errors.UserError(
      f'--output {output} is the --input: give another name'
    )
  if output_format == H5:
    targets = keras_h5.write(output, network)
  elif output_format == PT:
    targets = torch_pt.write(output, network)
  else:
    # One of ours that is whole stays what it is, such as a classifier.
    model = None if network.left_out else found.model
    targets = _write_keras(output, network, model)
  rows = [
    report.Row(
      source=network.origins[name],
      target=targets[name],
      shape=shape,
      state=report.LOADED,
      why=f'of the {row.part}',
    )
    for row in layers_lib.table(network.sizes)
    for weight, shape in row.shapes.items()
    if (name := row.weight_name(weight))
  ]
  notes = [*_describe(network)]
  if network.batch_statistics and output_format == H5:
    notes.append(_RUNNING)
  return Conversion([*rows, *network.left_out], notes)


def _describe(network):
  count = sum(
    array.size for one in network.weights.values() for array in one.values()
  )
  yield f'network: {network.sizes}; {count} numbers'
  yield from network.notes


def _write_keras(path, network, model) -> dict[str, str]:
  model = model or network_lib.build(network)
  with output_file.replacing(path, suffix='.keras') as partial:
    model.save(partial)
  return {name: name for name in network.origins}


def _output_format(output, output_format) -> str:
  suffix = os.path.splitext(output)[1].lower()
  named = _SUFFIXES.get(suffix)
  if output_format is None and named is None:
    raise errors.UserError(
      f'--output {output} ends in none of {", ".join(_SUFFIXES)}: give --format'
    )
  chosen = output_format or named
  # Keras itself, and so train.start_from, goes by the name.
  if (chosen == KERAS) != (named == KERAS):
    raise errors.UserError(
      f'--output {output}: a file of --format keras, and no other, ends in'
      ' .keras: give such a name'
    )
  return chosen
