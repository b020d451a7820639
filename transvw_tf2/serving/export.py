"""Writes a model as a SavedModel that takes HU.

The encoder of a Y-Net or U-Net takes cubes, that of an autoencoder thumbnails
of whole scans; both are called volumes here. Decoder and heads come with it
where they are asked for.

Clipping and scaling happen inside the graph, so a caller needs neither Keras
nor this package, and transvw_model.json tells all that it has to know.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import importlib.metadata
import json
import math
import os
import shutil
import uuid

from absl import logging
import keras
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2 import output_file
from transvw_tf2 import schema
from transvw_tf2.models import blocks
from transvw_tf2.scans import thumbnail
from transvw_tf2.serving import functions as functions_lib
from transvw_tf2.serving import signatures
from transvw_tf2.training import checkpoints
from transvw_tf2.training import summary as summary_lib

# What a network was fine-tuned for; a U-Net restores unless told otherwise.
_TASK_HEADS = {
  'Classification': (signatures.PREDICT,),
  'Segmentation': (signatures.SEGMENT,),
}
# Keras dtype policies by what people call them.
_PRECISIONS = {'float32': 'float32', 'bfloat16': 'mixed_bfloat16'}
PRECISIONS = tuple(_PRECISIONS)
_LICENSE = (
  'The weights are under the licence of whoever trained them. Official weights'
  ' that were converted stay under the non-commercial terms of their authors;'
  ' mind these terms too where a training started from such weights.'
)


def export_encoder(
  model: keras.Model,
  output: str,
  summary: Mapping[str, object],
  *,
  cube_shape: Sequence[int] = schema.CUBE_SHAPE,
  words: Sequence[str] = (),
  classes: Sequence[str] = (),
  heads: Sequence[str] = (),
  source: Mapping[str, object] | None = None,
  overwrite: bool = False,
  precision: str | None = None,
  pooling_grid: Sequence[int] = (1, 1, 1),
) -> None:
  """Writes the encoder of `model` as a SavedModel, all of it or nothing.

  Signatures, each with one output `embedding`, float32
  (B, embedding size): `embed_cubes` (also `serving_default`) takes `cubes`,
  float32 (B, X, Y, Z, 1) in HU; `embed_cubes_int16` the same as int16;
  `embed_bytes` takes `bytes`, string (B,) of little-endian int16 HU in
  [x, y, z] C order. `transvw_model.json` beside it describes the model.

  Batch norm is folded into the convolutions of a copy, unless the network
  normalises by batch statistics: then outputs depend on the batch here too.

  Args:
    model: network of transvw_tf2.models with its weights; left as it is, but
      built if it is not.
    output: folder to write.
    summary: how the model was trained, JSON values; goes into the json file.
    cube_shape: voxels of a cube along x, y and z.
    words: names of the words the model was trained on, in their order.
    classes: names of the classes that a fine-tuned model tells, in their order.
    heads: signatures beyond the encoder. All take `cubes` as `embed_cubes`:
      `restore` gives `restored`, float32 (B, X, Y, Z, channels) in HU;
      `classify_word` and `predict` give `probabilities`, float32 (B, C);
      `segment` gives `probabilities`, float32 (B, X, Y, Z, channels).
    source: of the training, see training.summary.describe_source; None takes
      that of the files that run now.
    overwrite: whether an existing `output` is replaced.
    precision: what is computed in, one of PRECISIONS; None takes that of the
      model. Weights, inputs and outputs are as ever.
    pooling_grid: equal parts of a cube along x, y and z over each of which the
      last features are averaged; the embedding holds the averages of all parts,
      in [x, y, z] C order.

  Raises:
    errors.UserError: `output` exists and is not to be replaced, or it cannot be
      written, or the network lacks what a head gives, the parts are not
      equal, or the network normalises by the statistics of a batch.
  """
  described = {
    'cube_shape': list(cube_shape),
    'words': list(words),
    'classes': list(classes),
    'training': dict(summary),
    'source': dict(source or summary_lib.describe_source()),
  }
  kind = signatures.CUBES
  _export(
    *(model, output, kind, cube_shape, heads, described, overwrite),
    precision=precision,
    pooling_grid=pooling_grid,
  )


def export_thumbnail_encoder(
  model: keras.Model,
  output: str,
  summary: Mapping[str, object],
  *,
  thumbnail_shape: Sequence[int] = thumbnail.SHAPE,
  source: Mapping[str, object] | None = None,
  overwrite: bool = False,
  precision: str | None = None,
  pooling_grid: Sequence[int] = (1, 1, 1),
) -> None:
  """Writes the encoder of an autoencoder, as `export_encoder` does.

  Signatures: `embed_thumbnails` (also `serving_default`) and
  `embed_thumbnails_int16` take `thumbnails` in HU, (B, X, Y, Z, 1), and
  `embed_bytes` takes `bytes`.

  Args:
    model: unet3d.UNet3D with its weights.
    output: folder to write.
    summary: how the model was trained, JSON values; goes into the json file.
    thumbnail_shape: voxels of a thumbnail along x, y and z.
    source: see `export_encoder`.
    overwrite: whether an existing `output` is replaced.
    precision: see `export_encoder`.
    pooling_grid: see `export_encoder`.

  Raises:
    errors.UserError: as `export_encoder`.
  """
  described = {
    'thumbnail_shape': list(thumbnail_shape),
    'training': dict(summary),
    'source': dict(source or summary_lib.describe_source()),
  }
  kind = signatures.THUMBNAILS
  _export(
    *(model, output, kind, thumbnail_shape, (), described, overwrite),
    precision=precision,
    pooling_grid=pooling_grid,
  )


def _check_independent(model):
  # A server joins the requests of many into a batch.
  if getattr(model, 'batch_statistics', False):
    raise errors.UserError(
      'the network normalises by the statistics of the batch'
      ' (batch_statistics), so that what it says of a cube would depend on the'
      ' cubes beside it: load it with batch_statistics=False'
    )


def _check_heads(model, shape, heads):
  outputs = functions_lib.output_names(model, shape)
  for head in heads:
    if (
      head not in functions_lib.HEADS
      or functions_lib.HEADS[head][0] not in outputs
    ):
      known = ', '.join(functions_lib.find_heads(model, shape)) or 'none'
      raise errors.UserError(
        f'signature {head!r} is asked for, but {type(model).__name__} has no'
        f' part for it; wanted some of: {known}'
      )


def _check_grid(model, shape, pooling_grid):
  sides = [side // 2 ** (model.encoder.depth - 1) for side in shape]
  try:
    blocks.check_grid(pooling_grid, sides)
  except ValueError as error:
    raise errors.UserError(str(error)) from error


def _export(
  model,
  output,
  volumes,
  shape,
  heads,
  described,
  overwrite,
  *,
  precision,
  pooling_grid,
):
  """Writes the signatures of a network, and its description."""
  output = os.path.abspath(output)
  check_output(output, overwrite)
  _check_independent(model)
  _check_heads(model, shape, heads)
  _check_grid(model, shape, pooling_grid)
  if not model.built:
    model.build((None, *shape, 1))
  folded = _fold_copy(model, precision)
  functions = functions_lib.make_functions(
    folded, shape, volumes, heads, pooling_grid
  )
  module = tf.Module()
  # What is tracked is written: of the network only what the signatures read.
  module.weights = _read_variables(folded, functions)
  if volumes == signatures.CUBES and functions_lib.can_share(shape):
    windows = functions_lib.make_windows(folded, shape, pooling_grid)
    setattr(module, signatures.EMBED_WINDOWS, windows)
  metadata = {
    'format_version': signatures.METADATA_VERSION,
    'axes': ['x', 'y', 'z'],
    'orientation': 'LPS: x to the left, y to the back, z to the head',
    'embedding_size': int(model.embedding_size) * math.prod(pooling_grid),
    'hu_window': [schema.HU_MIN, schema.HU_MAX],
    'input': volumes,
    'license': _LICENSE,
    'network': type(model).__name__,
    'package_version': _package_version(),
    'pooling_grid': list(pooling_grid),
    'precision': folded.compute_dtype,
    'signatures': {
      name: _describe_function(function) for name, function in functions.items()
    },
    **described,
  }
  _write(module, functions, metadata, output)


def _write(module, functions, metadata, output):
  # Beside the output, so that the rename stays within one file system.
  partial = f'{output}.partial-{uuid.uuid4().hex[:8]}'
  try:
    os.makedirs(partial)
    tf.saved_model.save(module, partial, signatures=functions)
    path = os.path.join(partial, signatures.METADATA_FILE)
    with open(path, 'w', encoding='utf-8') as file:
      # Not every reader of JSON takes NaN.
      json.dump(metadata, file, indent=2, sort_keys=True, allow_nan=False)
      file.write('\n')
    _replace_folder(partial, output)
  except (OSError, tf.errors.OpError) as error:
    raise errors.UserError(
      f'output {output!r} cannot be written ({error}), wanted a folder in a '
      'writable place: choose another --output'
    ) from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _fold_copy(model, precision):
  """Returns a copy of a built network with its batch norm folded."""
  config = model.get_config()
  if precision is not None:
    config['dtype'] = _PRECISIONS[precision]
  copy = type(model).from_config(config)
  copy.build((None, None, None, None, 1))
  copy.set_weights(model.get_weights())
  blocks.fold(copy)
  return copy


def _read_variables(model, functions):
  """Returns the variables of a network that any of the functions reads."""
  read = {
    variable.ref()
    for function in functions.values()
    # In another order each time.
    for variable in function.get_concrete_function().graph.variables
  }
  return [one.value for one in model.weights if one.value.ref() in read]


def _describe_function(function):
  concrete = function.get_concrete_function()
  inputs, _ = concrete.structured_input_signature
  outputs = concrete.structured_outputs
  return {
    'inputs': [_describe_tensor(one.name, one) for one in inputs],
    'outputs': [_describe_tensor(name, one) for name, one in outputs.items()],
  }


def _describe_tensor(name, tensor):
  return {
    'name': name,
    'dtype': tensor.dtype.name,
    'shape': tensor.shape.as_list(),  # None, of the batch: any number
    'unit': signatures.UNITS[name],
  }


def check_output(output: str, overwrite: bool) -> None:
  """Raises errors.UserError if `output` may not be written or replaced."""
  output_file.check_no_pattern('--output', output)
  if not os.path.lexists(output):
    return
  if not overwrite:
    raise errors.UserError(
      f'output {output!r} exists, wanted a new folder: choose another --output '
      'or pass --overwrite'
    )
  is_model = os.path.isfile(os.path.join(output, signatures.METADATA_FILE))
  if not os.path.isdir(output) or (os.listdir(output) and not is_model):
    raise errors.UserError(
      f'output {output!r} holds no {signatures.METADATA_FILE}, --overwrite '
      'replaces only exported models: choose another --output'
    )


def export_workdir(
  workdir: str,
  output: str,
  checkpoint: str,
  overwrite: bool = False,
  whole: bool = False,
  precision: str | None = None,
  pooling_grid: Sequence[int] = (1, 1, 1),
) -> dict:
  """Exports the network of a training run, or a file; returns its summary.

  Of pre-training that is the encoder; a network fine-tuned to classify or to
  segment also has the signature `predict` or `segment`.

  Args:
    workdir: folder written by transvw_tf2.train, or a .keras file of
      transvw_tf2.convert.
    output: folder to write.
    checkpoint: 'best' or 'latest' of the run.
    overwrite: whether an existing `output` is replaced.
    whole: whether pre-training's decoder and head come too, as far as the
      network has them: the signatures `restore` and `classify_word`.
    precision: see `export_encoder`; a run is loaded in float32.
    pooling_grid: see `export_encoder`.

  Raises:
    errors.UserError: no such run or checkpoint, `output` exists, `whole` is
      asked of an autoencoder, or the parts of `pooling_grid` are not equal.
  """
  # Before the weights are read: the answer may be no.
  check_output(os.path.abspath(output), overwrite)
  model, metadata = checkpoints.load_model(workdir, which=checkpoint)
  run = _read_run(workdir)
  summary = _summarize(metadata, run)
  shape = metadata['shape']
  shared = {
    'source': run.get('source'),
    'overwrite': overwrite,
    'precision': precision,
    'pooling_grid': pooling_grid,
  }
  if metadata['volume'] == 'thumbnail':
    if whole:
      raise errors.UserError(
        f'--whole is set, but --workdir {workdir} is a run of an autoencoder,'
        ' of which only the encoder is served: leave --whole out'
      )
    export_thumbnail_encoder(
      model, output, summary, thumbnail_shape=shape, **shared
    )
  else:
    heads = _TASK_HEADS.get(metadata.get('task'), ())
    if whole and not heads:
      heads = functions_lib.find_heads(model, shape)
    export_encoder(
      model,
      output,
      summary,
      cube_shape=shape,
      words=metadata.get('words', ()),
      classes=metadata.get('classes', ()),
      heads=heads,
      **shared,
    )
  logging.info('exported %s to %s', workdir, output)
  return summary


def _summarize(metadata, run):
  """Returns what the json of the export tells of the training."""
  # It need not repeat the model's own configuration.
  described = {'model', 'shape', 'volume', 'words', 'classes', 'val_loss'}
  summary = {key: metadata[key] for key in metadata if key not in described}
  if 'val_loss' in metadata:
    # Infinite before the first epoch, which JSON has no number for.
    loss = metadata['val_loss']
    summary['val_loss'] = loss if math.isfinite(loss) else None
  if run:
    summary['run'] = {key: run[key] for key in run if key != 'source'}
  return summary


def _read_run(workdir):
  """Returns summary.json of a run; {} where it has none, as before its end."""
  path = os.path.join(workdir, summary_lib.SUMMARY_FILE)
  try:
    with open(path, encoding='utf-8') as file:
      run = json.load(file)
  except (FileNotFoundError, NotADirectoryError):
    return {}
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f'{path} cannot be read ({error}): remove it to export without it'
    ) from error
  if not isinstance(run, dict) or not isinstance(run.get('source', {}), dict):
    raise errors.UserError(
      f'{path} is not what training writes, an object with an object `source`:'
      ' remove it to export without it'
    )
  return run


def _replace_folder(source: str, target: str) -> None:
  """Renames `source` to `target`; what was there goes only afterwards."""
  old = f'{source}-old'
  if os.path.lexists(target):
    os.rename(target, old)
  os.rename(source, target)
  shutil.rmtree(old, ignore_errors=True)


def _package_version() -> str:
  try:
    return importlib.metadata.version('transvw-tf2')
  except importlib.metadata.PackageNotFoundError:
    return 'unknown'  # run from a source tree that is not installed
