"""Writes the encoder of a model as a SavedModel that takes HU.

That of a Y-Net or U-Net takes cubes, that of an autoencoder thumbnails of whole
scans; both are called volumes here.

Clipping and scaling happen inside the graph, so a caller needs neither Keras
nor this package.
"""

from collections.abc import Sequence
import importlib.metadata
import json
import math
import os
import shutil
import uuid

from absl import logging
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.scans import thumbnail
from transvw_tf2.serving import signatures
from transvw_tf2.training import checkpoints


class ServedEncoder(tf.Module):
  """Encoder from HU to embeddings, one tf.function per signature."""

  def __init__(
    self, model, shape: Sequence[int], volumes: str = signatures.CUBES
  ):
    """Initialises the module.

    Args:
      model: built unet3d.UNet3D or visual_word_net.VisualWordNet.
      shape: voxels of a volume along x, y and z.
      volumes: signatures.CUBES or signatures.THUMBNAILS, the name of the input
        and part of the names of the signatures.
    """
    super().__init__(name='served_encoder')
    # Only the encoder is tracked, so decoder and head are not written.
    self.encoder = model.encoder
    self._shape = tuple(shape)
    self._volumes = volumes
    embed = model.embed

    def embed_hu(hu):
      clipped = tf.clip_by_value(hu, schema.HU_MIN, schema.HU_MAX)
      return {signatures.EMBEDDING: embed(schema.scale_hu(clipped))}

    batch_shape = (None, *self._shape, 1)

    # The name of the specification is that of the input in the contract.
    @tf.function(
      input_signature=[tf.TensorSpec(batch_shape, tf.float32, volumes)]
    )
    def embed_floats(hu):
      return embed_hu(hu)

    @tf.function(
      input_signature=[tf.TensorSpec(batch_shape, tf.int16, volumes)]
    )
    def embed_int16(hu):
      return embed_hu(tf.cast(hu, tf.float32))

    @tf.function(
      input_signature=[tf.TensorSpec((None,), tf.string, signatures.BYTES)]
    )
    def embed_bytes(strings):
      return embed_hu(self._decode(strings))

    self.embed_floats = embed_floats
    self.embed_int16 = embed_int16
    self.embed_bytes = embed_bytes

  def functions(self) -> dict:
    """Returns the tf.functions by the name of their signature."""
    floats, int16 = {
      signatures.CUBES: (signatures.EMBED_CUBES, signatures.EMBED_CUBES_INT16),
      signatures.THUMBNAILS: (
        signatures.EMBED_THUMBNAILS,
        signatures.EMBED_THUMBNAILS_INT16,
      ),
    }[self._volumes]
    return {
      tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY: self.embed_floats,
      floats: self.embed_floats,
      int16: self.embed_int16,
      signatures.EMBED_BYTES: self.embed_bytes,
    }

  def _decode(self, strings):
    """Decodes string (B,) into float32 HU (B, X, Y, Z, 1)."""
    wanted = 2 * math.prod(self._shape)
    lengths = tf.strings.length(strings)
    check = tf.debugging.Assert(
      tf.reduce_all(lengths == wanted),
      [
        f'bytes: wanted {wanted} bytes per {self._volumes[:-1]}, little-endian '
        f'int16 {self._shape} in [x, y, z] C order; got the lengths',
        lengths,
      ],
      summarize=16,
    )
    # decode_raw has no side effect: without this its own error may come first.
    with tf.control_dependencies([check]):
      values = tf.io.decode_raw(
        tf.identity(strings), tf.int16, little_endian=True
      )
    shape = (tf.shape(strings)[0], *self._shape, 1)
    return tf.cast(tf.reshape(values, shape), tf.float32)


def export_encoder(
  model,
  output: str,
  summary: dict,
  *,
  cube_shape: Sequence[int] = schema.CUBE_SHAPE,
  words: Sequence[str] = (),
  overwrite: bool = False,
) -> None:
  """Writes the encoder of `model` as a SavedModel, all of it or nothing.

  Signatures, each with one output `embedding`, float32
  (B, embedding size): `embed_cubes` (also `serving_default`) takes `cubes`,
  float32 (B, X, Y, Z, 1) in HU; `embed_cubes_int16` the same as int16;
  `embed_bytes` takes `bytes`, string (B,) of little-endian int16 HU in
  [x, y, z] C order. `transvw_model.json` beside it describes the model.

  Args:
    model: unet3d.UNet3D or visual_word_net.VisualWordNet with its weights.
    output: folder to write.
    summary: how the model was trained; goes into the json file.
    cube_shape: voxels of a cube along x, y and z.
    words: names of the words the model was trained on.
    overwrite: whether an existing `output` is replaced.

  Raises:
    errors.UserError: `output` exists and is not to be replaced, or it cannot be
      written.
  """
  described = {'cube_shape': list(cube_shape), 'words': list(words)}
  _export(
    model, output, summary, signatures.CUBES, cube_shape, described, overwrite
  )


def export_thumbnail_encoder(
  model,
  output: str,
  summary: dict,
  *,
  thumbnail_shape: Sequence[int] = thumbnail.SHAPE,
  overwrite: bool = False,
) -> None:
  """Writes the encoder of an autoencoder, as `export_encoder` does.

  Signatures: `embed_thumbnails` (also `serving_default`) and
  `embed_thumbnails_int16` take `thumbnails` in HU, (B, X, Y, Z, 1), and
  `embed_bytes` takes `bytes`.

  Args:
    model: unet3d.UNet3D with its weights.
    output: folder to write.
    summary: how the model was trained; goes into the json file.
    thumbnail_shape: voxels of a thumbnail along x, y and z.
    overwrite: whether an existing `output` is replaced.

  Raises:
    errors.UserError: as `export_encoder`.
  """
  described = {'thumbnail_shape': list(thumbnail_shape)}
  kind = signatures.THUMBNAILS
  _export(model, output, summary, kind, thumbnail_shape, described, overwrite)


def _export(model, output, summary, volumes, shape, described, overwrite):
  """Writes a ServedEncoder of some volumes, and its description."""
  output = os.path.abspath(output)
  check_output(output, overwrite)
  if not model.built:
    model.build((None, *shape, 1))
  module = ServedEncoder(model, shape, volumes)
  metadata = {
    'axes': ['x', 'y', 'z'],
    'embedding_size': int(model.embedding_size),
    'hu_window': [schema.HU_MIN, schema.HU_MAX],
    'input': volumes,
    'package_version': _package_version(),
    'training': summary,
    **described,
  }
  # Beside the output, so that the rename stays within one file system.
  partial = f'{output}.partial-{uuid.uuid4().hex[:8]}'
  try:
    os.makedirs(partial)
    tf.saved_model.save(module, partial, signatures=module.functions())
    path = os.path.join(partial, signatures.METADATA_FILE)
    with open(path, 'w', encoding='utf-8') as file:
      json.dump(metadata, file, indent=2, sort_keys=True)
      file.write('\n')
    _replace_folder(partial, output)
  except OSError as error:
    raise errors.UserError(
      f'output {output!r} cannot be written ({error}), wanted a folder in a '
      'writable place: choose another --output'
    ) from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def check_output(output: str, overwrite: bool) -> None:
  """Raises errors.UserError if `output` exists and may not be replaced."""
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
  workdir: str, output: str, checkpoint: str, overwrite: bool = False
) -> dict:
  """Exports the encoder of a training run and returns its summary.

  Args:
    workdir: folder written by transvw_tf2.train.
    output: folder to write.
    checkpoint: 'best' or 'latest'.
    overwrite: whether an existing `output` is replaced.

  Raises:
    errors.UserError: no such run or checkpoint, or `output` exists.
  """
  # Before the weights are read: the answer may be no.
  check_output(os.path.abspath(output), overwrite)
  model, metadata = checkpoints.load_model(workdir, which=checkpoint)
  # The json of the export need not repeat the model's own configuration.
  described = {'model', 'shape', 'volume', 'words'}
  summary = {
    'checkpoint': checkpoint,
    **{key: metadata[key] for key in metadata if key not in described},
  }
  shape = metadata['shape']
  if metadata['volume'] == 'thumbnail':
    export_thumbnail_encoder(
      model, output, summary, thumbnail_shape=shape, overwrite=overwrite
    )
  else:
    export_encoder(
      model,
      output,
      summary,
      cube_shape=shape,
      words=metadata.get('words', ()),
      overwrite=overwrite,
    )
  logging.info('exported %s of %s to %s', checkpoint, workdir, output)
  return summary


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
