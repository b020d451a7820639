"""Loads exported encoders."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import os

import numpy as np
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2.serving import signatures

_INT16 = {
  signatures.CUBES: signatures.EMBED_CUBES_INT16,
  signatures.THUMBNAILS: signatures.EMBED_THUMBNAILS_INT16,
}


@dataclasses.dataclass(frozen=True)
class Encoder:
  """An exported encoder.

  Attributes:
    loaded: what tf.saved_model.load returned; its functions die with it.
    function: the signature that takes int16.
    volumes: signatures.CUBES or signatures.THUMBNAILS, the name of its input.
    shape: voxels of a volume along x, y and z.
    embedding_size: numbers in an embedding.
  """

  loaded: object
  function: Callable
  volumes: str
  shape: tuple[int, int, int]
  embedding_size: int

  def embed(self, hu: np.ndarray) -> np.ndarray:
    """Maps int16 (B, x, y, z), HU, to float32 (B, embedding_size)."""
    volumes = {self.volumes: tf.constant(hu[..., np.newaxis])}
    return self.function(**volumes)[signatures.EMBEDDING].numpy()

  @property
  def has_windows(self) -> bool:
    """Whether there is `embed_windows`; models exported earlier lack it."""
    return hasattr(self.loaded, signatures.EMBED_WINDOWS)

  def embed_windows(
    self, hu: np.ndarray, corners: Sequence[np.ndarray]
  ) -> np.ndarray:
    """Embeds cubes of a grid that share their work.

    Args:
      hu: int16 [x, y, z], HU, of a scan.
      corners: along each axis, see models.sliding_windows.embed_windows.

    Returns:
      float32 (cubes, embedding_size), in [x, y, z] C order.
    """
    box = tuple(
      slice(starts[0], starts[-1] + side)
      for starts, side in zip(corners, self.shape, strict=True)
    )
    inside = [tf.constant(one - one[0], tf.int32) for one in corners]
    function = getattr(self.loaded, signatures.EMBED_WINDOWS)
    return function(tf.constant(hu[box]), *inside).numpy()


def load_saved_model(path: str, hint: str):
  """Loads a SavedModel.

  Args:
    path: its folder.
    hint: what to give instead, for the message.

  Raises:
    errors.UserError: it is none, or cannot be loaded.
  """
  if not os.path.isfile(os.path.join(path, 'saved_model.pb')):
    raise errors.UserError(
      f'model {path!r} is not a SavedModel (no saved_model.pb in it): {hint}'
    )
  try:
    return tf.saved_model.load(path)
  except (OSError, ValueError, tf.errors.OpError) as error:
    advice = 'export it again'
    if '[' in path or '\\' in path:
      advice = 'move it, for TensorFlow takes its path for a pattern'
    raise errors.UserError(
      f'model {path!r} cannot be loaded ({error}): {advice}'
    ) from error


def load(path: str, volumes: str) -> Encoder:
  """Loads what serving/export.py wrote.

  Args:
    path: the --output of transvw_tf2.export.
    volumes: signatures.CUBES or signatures.THUMBNAILS, what it has to take.

  Raises:
    errors.UserError: `path` is missing, no SavedModel or of another program, or
      the model takes something else.
  """
  run = 'an autoencoder' if volumes == signatures.THUMBNAILS else 'pre-training'
  hint = f'pass the --output of transvw_tf2.export of {run}'
  if not os.path.isdir(path):
    raise errors.UserError(f'model {path!r} is not a folder: {hint}')
  loaded = load_saved_model(path, hint)
  name = _INT16[volumes]
  function = loaded.signatures.get(name)
  if function is None:
    raise errors.UserError(
      f'model {path!r} has the signatures {sorted(loaded.signatures)}, wanted'
      f' {name!r}: {hint}'
    )
  _, inputs = function.structured_input_signature
  return Encoder(
    loaded=loaded,
    function=function,
    volumes=volumes,
    shape=tuple(inputs[volumes].shape[1:4]),
    embedding_size=function.structured_outputs[signatures.EMBEDDING].shape[-1],
  )
