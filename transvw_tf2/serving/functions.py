"""What an exported model computes: the functions of its graph, from HU on."""

from collections.abc import Mapping
from collections.abc import Sequence
import math

import keras
import tensorflow as tf

from transvw_tf2 import schema
from transvw_tf2.models import sliding_windows
from transvw_tf2.serving import signatures

_EMBED_NAMES = {
  signatures.CUBES: (signatures.EMBED_CUBES, signatures.EMBED_CUBES_INT16),
  signatures.THUMBNAILS: (
    signatures.EMBED_THUMBNAILS,
    signatures.EMBED_THUMBNAILS_INT16,
  ),
}
# By signature: what it gives of the outputs of a network, and by which name.
HEADS = {
  signatures.RESTORE: ('restored', signatures.RESTORED),
  signatures.CLASSIFY_WORD: ('words', signatures.PROBABILITIES),
  signatures.PREDICT: ('probabilities', signatures.PROBABILITIES),
  signatures.SEGMENT: ('restored', signatures.PROBABILITIES),
}


def make_functions(
  model: keras.Model,
  shape: Sequence[int],
  volumes: str = signatures.CUBES,
  heads: Sequence[str] = (),
  pooling_grid: Sequence[int] = (1, 1, 1),
) -> dict[str, tf.types.experimental.PolymorphicFunction]:
  """Returns the functions to serve by the name of their signature.

  Args:
    model: a built network of transvw_tf2.models.
    shape: voxels of a volume along x, y and z.
    volumes: signatures.CUBES or signatures.THUMBNAILS, the name of the input
      and part of the names of the signatures.
    heads: signatures beyond those that embed, such as signatures.RESTORE.
    pooling_grid: see `export.export_encoder`.
  """

  def embed(hu):
    return {signatures.EMBEDDING: model.embed(_scale(hu), pooling_grid)}

  # The name of the specification is that of the input in the contract.
  floats = tf.TensorSpec((None, *shape, 1), tf.float32, volumes)
  int16 = tf.TensorSpec((None, *shape, 1), tf.int16, volumes)
  strings = tf.TensorSpec((None,), tf.string, signatures.BYTES)
  embed_floats = tf.function(embed, input_signature=[floats])
  embed_int16 = tf.function(
    lambda hu: embed(tf.cast(hu, tf.float32)), input_signature=[int16]
  )
  embed_bytes = tf.function(
    lambda encoded: embed(_decode(encoded, shape, volumes)),
    input_signature=[strings],
  )
  floats_name, int16_name = _EMBED_NAMES[volumes]
  return {
    tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY: embed_floats,
    floats_name: embed_floats,
    int16_name: embed_int16,
    signatures.EMBED_BYTES: embed_bytes,
    **{head: _make_head(model, head, floats) for head in heads},
  }


def can_share(shape: Sequence[int]) -> bool:
  """Returns whether overlapping cubes of a shape have anything in common."""
  return min(shape) >= sliding_windows.LEAST_SIDE


def make_windows(
  model: keras.Model, shape: Sequence[int], pooling_grid: Sequence[int]
) -> tf.types.experimental.PolymorphicFunction:
  """Returns the function signatures.EMBED_WINDOWS.

  Args:
    model: a built network with an encoder; the shape has to `can_share`.
    shape: voxels of a cube along x, y and z.
    pooling_grid: see `export.export_encoder`.
  """
  corners = [tf.TensorSpec((None,), tf.int32) for _ in range(3)]
  volume = tf.TensorSpec((None, None, None), tf.int16)

  @tf.function(input_signature=[volume, *corners])
  def embed_windows(hu, *corners):
    return sliding_windows.embed_windows(
      *(model.encoder, _scale(tf.cast(hu, tf.float32)), corners, shape),
      grid=pooling_grid,
    )

  return embed_windows


def _make_head(model, head, floats):
  """Returns the function of a signature of HEADS."""
  output, name = HEADS[head]

  # The graph holds all of the network, but only what leads to a result is run.
  @tf.function(input_signature=[floats])
  def run(hu):
    outputs = model(_scale(hu), training=False)
    # A plain U-Net has but one output.
    result = outputs[output] if isinstance(outputs, Mapping) else outputs
    if name == signatures.RESTORED:
      result = result * (schema.HU_MAX - schema.HU_MIN) + schema.HU_MIN
    return {name: result}

  return run


def _scale(hu):
  clipped = tf.clip_by_value(hu, schema.HU_MIN, schema.HU_MAX)
  return schema.scale_hu(clipped)


def _decode(strings, shape, volumes):
  """Decodes string (B,) into float32 HU (B, X, Y, Z, 1)."""
  wanted = 2 * math.prod(shape)
  lengths = tf.strings.length(strings)
  check = tf.debugging.Assert(
    tf.reduce_all(lengths == wanted),
    [
      f'bytes: wanted {wanted} bytes per {volumes[:-1]}, little-endian '
      f'int16 {tuple(shape)} in [x, y, z] C order; got the lengths',
      lengths,
    ],
    summarize=16,
  )
  # decode_raw has no side effect: without this its own error may come first.
  with tf.control_dependencies([check]):
    values = tf.io.decode_raw(
      tf.identity(strings), tf.int16, little_endian=True
    )
  values = tf.reshape(values, (tf.shape(strings)[0], *shape, 1))
  return tf.cast(values, tf.float32)


def find_heads(
  model: keras.Model, cube_shape: Sequence[int]
) -> tuple[str, ...]:
  """Returns the signatures beyond the encoder that a network has parts for."""
  outputs = output_names(model, cube_shape)
  known = (signatures.RESTORE, signatures.CLASSIFY_WORD, signatures.PREDICT)
  return tuple(head for head in known if HEADS[head][0] in outputs)


def output_names(model: keras.Model, shape: Sequence[int]) -> set[str]:
  """Returns what the outputs of a network are called in HEADS."""
  shapes = model.compute_output_shape((None, *shape, 1))
  return set(shapes) if isinstance(shapes, Mapping) else {'restored'}
