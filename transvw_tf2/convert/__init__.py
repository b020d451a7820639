"""Weights in and out: the official Keras and PyTorch releases, and ours.

  python -m transvw_tf2.convert --input TransVW_chest_ct.h5 --output F.keras

`load` reads any of these files in Python. The two uses of the published
weights, in a few lines each; cubes are float32 (B, 64, 64, 32, 1) in [0, 1]:

  from transvw_tf2 import convert
  model = convert.load('TransVW_chest_ct.h5')
  outputs = model(cubes)  # restored, words, embedding
  embeddings = model.embed(cubes)  # (B, 512), the mean of depth_7_relu

Classification: a dense layer on the mean of depth_7_relu, trained with all of
the encoder; labels are float32 (B, 2), one-hot:

  inputs = keras.Input((64, 64, 32, 1))
  bottleneck, skips = model.encoder(inputs)  # bottleneck is depth_7_relu
  classes = keras.layers.Dense(2, 'softmax')(model.global_pool(bottleneck))
  classifier = keras.Model(inputs, classes)
  classifier.compile('adam', 'categorical_crossentropy')
  classifier.fit(cubes, labels)

Segmentation: encoder and decoder with their last convolution:

  masks = model.restore(bottleneck, skips)
  segmentation = keras.Model(inputs, masks)
"""

from collections.abc import Collection
import typing

if typing.TYPE_CHECKING:
  import keras


def load(
  path: str,
  *,
  batch_statistics: bool = False,
  allow_missing: Collection[str] = (),
) -> 'keras.Model':
  """Loads a network from a file of weights.

  Args:
    path: an official .h5 of TransVW or Models Genesis, a .pt of the PyTorch
      release, a file that `python -m transvw_tf2.convert` wrote, or the folder
      of a run.
    batch_statistics: whether the network of the PyTorch release normalises each
      batch by its own statistics, as the release does in evaluation too;
      otherwise by the running ones.
    allow_missing: 'head', 'decoder': parts that may be missing in the file, or
      not whole.

  Returns:
    A model, built. Called on float32 (B, 64, 64, 32, 1) cubes in [0, 1] it
    returns a dict of float32 with what it has of `restored`
    (B, 64, 64, 32, 1) in [0, 1], `words` (B, C) probabilities and `embedding`
    (B, 512); the classifier of a target task returns `probabilities`
    (B, classes) and `embedding`. `model.embed(cubes)` runs the encoder alone,
    `model.encoder` is the encoder.

  Raises:
    errors.UserError: the file cannot be read, or holds no whole network.
  """
  # Imported late: the command quiets TensorFlow before it is imported.
  from transvw_tf2.convert import loading

  return loading.load(path, batch_statistics, allow_missing)
