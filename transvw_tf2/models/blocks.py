"""Parts of the 3D networks: convolution block, upsampling and shape checks.

All tensors are channels_last: channels_first convolutions do not exist on CPU.
Between the blocks they are (batch, z, x, y, channels), see convolutions.
"""

from collections.abc import Sequence
import math

import keras
import tensorflow as tf

from transvw_tf2.models import convolutions
from transvw_tf2.models import decorrelation

_PACKAGE = 'transvw_tf2'

NEAREST = 'nearest'
TRANSPOSED = 'transposed'
UPSAMPLINGS = (NEAREST, TRANSPOSED)


def check_cubes_shape(shape, depth: int, channels: int = 1) -> None:
  """Checks the shape of a batch of cubes; unknown (None) sides pass.

  Args:
    shape: shape of the cubes, wanted (batch, x, y, z, channels).
    depth: levels of the network, so depth - 1 poolings by 2.
    channels: channels wanted.

  Raises:
    ValueError: wrong rank or channels, or a side that the poolings cannot
      halve without rest.
  """
  shape = tuple(shape)
  factor = 2 ** (depth - 1)
  sides_fit = len(shape) == 5 and all(
    side is None or (side > 0 and side % factor == 0) for side in shape[1:4]
  )
  if not sides_fit or shape[4] not in (None, channels):
    raise ValueError(
      f'cubes have shape {shape}, wanted (batch, x, y, z, {channels}) with x, '
      f'y and z multiples of {factor} (depth {depth}): crop or pad the cubes'
    )


def check_positive(**settings) -> None:
  """Raises ValueError unless every setting is an integer of at least 1."""
  for name, value in settings.items():
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise ValueError(
        f'{name} is {value!r}, wanted an integer of at least 1: change {name}'
      )


def pool_grid(features, grid: Sequence[int] = (1, 1, 1)):
  """Averages features over each of the equal parts of a cube.

  One part is the global average pool. More of them tell where in the cube
  something is (spatial pyramids; Lazebnik et al., CVPR 2006).

  Args:
    features: float (B, Z, X, Y, C), as they are between blocks.
    grid: parts along x, y and z.

  Returns:
    float32 (B, parts * C): the C numbers of one part after those of the other,
    parts in [x, y, z] C order.

  Raises:
    ValueError: the parts are not equal, see `check_grid`.
  """
  # float32 also under mixed precision: means over many voxels.
  features = keras.ops.cast(features, 'float32')
  if tuple(grid) == (1, 1, 1):  # of any sides, also unknown ones
    return keras.ops.mean(features, axis=(1, 2, 3))
  _, z, x, y, channels = features.shape
  check_grid(grid, (x, y, z))
  means = keras.ops.average_pool(
    features,
    (z // grid[2], x // grid[0], y // grid[1]),
    padding='valid',
    data_format='channels_last',
  )
  return keras.ops.reshape(
    convolutions.to_outer(means), (-1, math.prod(grid) * channels)
  )


def pool_centre(features):
  """Averages features around the middle of a cube.

  Args:
    features: float (B, Z, X, Y, C), as they are between blocks.

  Returns:
    float32 (B, C), of the two voxels around the middle along each axis, or of
    the one in the middle where their number is odd.
  """
  features = keras.ops.cast(features, 'float32')
  z, x, y = (
    slice((side - 1) // 2, side // 2 + 1) for side in features.shape[1:4]
  )
  return keras.ops.mean(features[:, z, x, y], axis=(1, 2, 3))


def check_grid(grid: Sequence[int], sides: Sequence[int]) -> None:
  """Checks that features of some sides can be cut into equal parts.

  Args:
    grid: parts along x, y and z.
    sides: of the features along x, y and z.

  Raises:
    ValueError: they cannot.
  """
  if len(grid) != 3 or not all(
    parts > 0 and side % parts == 0
    for parts, side in zip(grid, sides, strict=True)
  ):
    raise ValueError(
      f'pooling grid is {tuple(grid)}, wanted three numbers that divide the'
      f' sides of the last features, {tuple(sides)}'
    )


def check_upsampling(upsampling: str, fused_upsampling: bool) -> None:
  """Raises ValueError for settings of the decoder that do not exist."""
  if upsampling not in UPSAMPLINGS:
    raise ValueError(
      f'upsampling is {upsampling!r}, wanted one of {UPSAMPLINGS}'
    )
  if fused_upsampling and upsampling != NEAREST:
    raise ValueError(
      f'fused_upsampling is set with upsampling {upsampling!r}, wanted '
      f'{NEAREST!r}: a transposed convolution has nothing to fuse'
    )


@keras.saving.register_keras_serializable(package=_PACKAGE)
class ConvBlock(keras.layers.Layer):
  """3x3x3 convolution with bias, batch normalisation and ReLU.

  The parts are named depth_{number}_conv, _bn and _relu, as in the official
  weights.

  Attributes:
    batch_statistics: whether a batch is normalised by its own statistics
      always, also where it does not train or is frozen. Of the network around
      it, which sets it and has it in its configuration.
  """

  def __init__(
    self,
    filters: int,
    number: int,
    synchronized_batch_norm: bool = False,
    **kwargs,
  ):
    """Initialises the block.

    Args:
      filters: channels out.
      number: the n of the names depth_{n}_conv, depth_{n}_bn, depth_{n}_relu.
      synchronized_batch_norm: whether batch statistics span all replicas; not
        possible inside a jit-compiled function.
      **kwargs: passed to keras.layers.Layer.
    """
    kwargs.setdefault('name', f'depth_{number}')
    super().__init__(**kwargs)
    check_positive(filters=filters)
    self.filters = filters
    self.number = number
    self.synchronized_batch_norm = synchronized_batch_norm
    self.batch_statistics = False
    self.conv = keras.layers.Conv3D(
      filters,
      3,
      padding='same',
      data_format='channels_last',
      dtype=self.dtype_policy,
      name=f'depth_{number}_conv',
    )
    self.batch_norm = keras.layers.BatchNormalization(
      momentum=0.99,
      epsilon=1e-3,
      synchronized=synchronized_batch_norm,
      dtype=self.dtype_policy,
      name=f'depth_{number}_bn',
    )
    self.relu = keras.layers.ReLU(
      dtype=self.dtype_policy, name=f'depth_{number}_relu'
    )

  def build(self, input_shape):
    self.conv.build(input_shape)
    self.batch_norm.build((*input_shape[:-1], self.filters))

  def call(self, inputs, training=None):
    """Maps float (B, Z, X, Y, channels) to float (B, Z, X, Y, filters)."""
    return self.run(
      lambda kernel: convolutions.convolve(inputs, kernel), training=training
    )

  def run(self, convolution, training=None):
    """Runs the block with another way to convolve.

    Args:
      convolution: maps the kernel, (3, 3, 3, in, filters) of the compute dtype,
        to what the block normalises, float (B, Z, X, Y, filters).
      training: whether batch statistics are used; always, if the block has
        `batch_statistics`.

    Returns:
      float (B, Z, X, Y, filters).
    """
    learns = self.batch_norm is not None and self.batch_norm.trainable
    if not (self.batch_statistics or (training and learns)):
      kernel, bias = self._folded_weights()
      convolved = convolution(keras.ops.cast(kernel, self.compute_dtype))
      return self.relu(_add_bias(convolved, bias))
    kernel = keras.ops.cast(self.conv.kernel, self.compute_dtype)
    convolved = convolution(kernel)
    # Keras' layer takes the moving statistics where it is frozen.
    if self.synchronized_batch_norm and training and learns:
      convolved = _add_bias(convolved, self.conv.bias)
      normalized = self.relu(self.batch_norm(convolved, training=True))
    else:
      normalized = self._normalize_batch(convolved, training and learns)
    return decorrelation.watch(normalized)

  def fold(self) -> None:
    """Makes the normalisation by moving statistics part of the weights.

    Evaluation computes that kernel and bias anew in each call, for training may
    have moved the statistics. What is served does not train: folded, it reads
    two arrays where there were six. The block cannot train again, nor does its
    configuration tell, so this is for a copy.
    """
    kernel, bias = self._folded_weights()
    self.conv.kernel.assign(kernel)
    self.conv.bias.assign(bias)
    self.batch_norm = None

  def _folded_weights(self):
    """Returns kernel and bias with moving statistics in them, float32."""
    layer = self.batch_norm
    kernel = keras.ops.cast(self.conv.kernel, 'float32')
    bias = keras.ops.cast(self.conv.bias, 'float32')
    if layer is None:
      return kernel, bias
    scale = layer.gamma * keras.ops.rsqrt(layer.moving_variance + layer.epsilon)
    return kernel * scale, (bias - layer.moving_mean) * scale + layer.beta

  def _normalize_batch(self, convolved, learns):
    """Normalises by the statistics of the batch, then ReLU.

    One operation each way, where Keras' layer composes about twenty.

    The bias is not added, for the mean of the batch takes it off again: only
    the moving mean sees it, and its gradient is 0.

    Args:
      convolved: float (B, Z, X, Y, filters), without bias.
      learns: whether the moving statistics move, as in Keras.
    """
    layer = self.batch_norm
    bias = keras.ops.cast(self.conv.bias, 'float32')
    # The operation is slow with five axes, and takes ReLU in with four.
    flat = tf.reshape(convolved, (1, -1, 1, self.filters))
    normalized, mean, variance = tf.compat.v1.nn.fused_batch_norm(
      flat,
      scale=keras.ops.convert_to_tensor(layer.gamma),
      offset=layer.beta + 0.0 * bias,  # so that its gradient is not None
      epsilon=layer.epsilon,
    )
    result = tf.reshape(self.relu(normalized), tf.shape(convolved))
    if not learns:
      return result
    # That of a population, estimated; Keras keeps that of the batch.
    count = tf.cast(tf.shape(flat)[1], tf.float32)
    variance *= tf.maximum(count - 1, 1) / count
    for moving, value in (
      (layer.moving_mean, mean + bias),
      (layer.moving_variance, variance),
    ):
      moving.assign(moving * layer.momentum + value * (1 - layer.momentum))
    return result

  def compute_output_shape(self, input_shape):
    return (*input_shape[:-1], self.filters)

  def get_config(self):
    return {
      **super().get_config(),
      'filters': self.filters,
      'number': self.number,
      'synchronized_batch_norm': self.synchronized_batch_norm,
    }


def _add_bias(features, bias):
  return tf.nn.bias_add(features, keras.ops.cast(bias, features.dtype))


@keras.saving.register_keras_serializable(package=_PACKAGE)
class UpLevel(keras.layers.Layer):
  """Level of the decoder: upsample by 2, concatenate [up, skip], two blocks.

  The weights are the same whether `fused_upsampling` is on or off.
  """

  def __init__(
    self,
    filters: int,
    number: int,
    skip_connections: bool = True,
    upsampling: str = NEAREST,
    fused_upsampling: bool = False,
    synchronized_batch_norm: bool = False,
    **kwargs,
  ):
    """Initialises the level.

    Args:
      filters: channels of both blocks.
      number: number of the first block; the second has the next.
      skip_connections: whether the skip is concatenated, or ignored.
      upsampling: 'nearest', or 'transposed' for a 2x2x2 transposed convolution
        with stride 2 and bias, as many channels out as in.
      fused_upsampling: whether nearest upsampling and the first convolution
        run as one transposed convolution plus one convolution of the skip.
      synchronized_batch_norm: see ConvBlock.
      **kwargs: passed to keras.layers.Layer.
    """
    kwargs.setdefault('name', f'up_level_{number}')
    super().__init__(**kwargs)
    check_upsampling(upsampling, fused_upsampling)
    self.filters = filters
    self.number = number
    self.skip_connections = skip_connections
    self.upsampling = upsampling
    self.fused_upsampling = fused_upsampling
    self.synchronized_batch_norm = synchronized_batch_norm
    self.up = None  # made in build, for its channels are those that come in
    if upsampling == NEAREST:
      self.up = keras.layers.UpSampling3D(
        2,
        data_format='channels_last',
        dtype=self.dtype_policy,
        name=f'depth_{number}_up',
      )
    self.first = ConvBlock(
      filters, number, synchronized_batch_norm, dtype=self.dtype_policy
    )
    self.second = ConvBlock(
      filters, number + 1, synchronized_batch_norm, dtype=self.dtype_policy
    )

  def build(self, inputs_shape, skip_shape):
    channels = inputs_shape[-1]
    if self.upsampling == TRANSPOSED:
      self.up = keras.layers.Conv3DTranspose(
        channels,
        2,
        strides=2,
        data_format='channels_last',
        dtype=self.dtype_policy,
        name=f'depth_{self.number}_up',
      )
    self.up.build(inputs_shape)
    joined = channels + (skip_shape[-1] if self.skip_connections else 0)
    self.first.build((*skip_shape[:-1], joined))
    self.second.build((*skip_shape[:-1], self.filters))

  def call(self, inputs, skip, training=None):
    """Returns the features of this level.

    Args:
      inputs: float (B, Z/2, X/2, Y/2, channels), of the level below.
      skip: float (B, Z, X, Y, skip channels), of the encoder.
      training: whether batch statistics are used.

    Returns:
      float (B, Z, X, Y, filters).
    """
    if self.fused_upsampling:
      outputs = self.first.run(
        lambda kernel: self._fused_convolution(inputs, skip, kernel),
        training=training,
      )
    else:
      joined = self._upsample(inputs)
      if self.skip_connections:
        joined = keras.ops.concatenate([joined, skip], axis=-1)
      outputs = self.first(joined, training=training)
    return self.second(outputs, training=training)

  def _upsample(self, inputs):
    if self.upsampling == NEAREST:
      return self.up(inputs)
    outputs = keras.ops.conv_transpose(
      inputs,
      convolutions.inner_kernel(
        keras.ops.cast(self.up.kernel, self.compute_dtype)
      ),
      strides=2,
      padding='valid',
      data_format='channels_last',
    )
    return _add_bias(outputs, self.up.bias)

  def _fused_convolution(self, inputs, skip, kernel):
    """Upsamples, joins and convolves without the upsampled or joined array."""
    # Split, not sliced: the gradient of a slice is as large as the kernel.
    up_kernel, *skip_kernel = tf.split(
      kernel,
      [inputs.shape[-1]] + [skip.shape[-1]] * self.skip_connections,
      axis=3,
    )
    convolved = keras.ops.conv_transpose(
      inputs,
      convolutions.double_kernel(up_kernel),
      strides=2,
      padding='same',
      data_format='channels_last',
    )
    if self.skip_connections:
      convolved += convolutions.convolve(skip, *skip_kernel)
    return convolved

  def compute_output_shape(self, inputs_shape, skip_shape):
    return (*skip_shape[:-1], self.filters)

  def get_config(self):
    return {
      **super().get_config(),
      'filters': self.filters,
      'number': self.number,
      'skip_connections': self.skip_connections,
      'upsampling': self.upsampling,
      'fused_upsampling': self.fused_upsampling,
      'synchronized_batch_norm': self.synchronized_batch_norm,
    }


def weight_layers(model: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
  """Returns the layers of `model` that hold weights themselves, by name.

  Names are those of the official weights: depth_{n}_conv, depth_{n}_bn,
  final_conv, cls_fc, cls_output, and depth_{n}_up where it has weights.

  Raises:
    ValueError: the model is not built, or two such layers share a name.
  """
  if not model.built:
    raise ValueError(
      f'model {model.name!r} has no weights yet, wanted a built model: '
      'call it once on a batch, or build it'
    )
  found = {}
  for layer in model._flatten_layers(include_self=False):
    has_children = bool(layer._layers)
    if layer.weights and not has_children:
      if layer.name in found:
        raise ValueError(
          f'two layers of {model.name!r} are named {layer.name!r}, wanted '
          'different names: rename one'
        )
      found[layer.name] = layer
  return found


def fold(model: keras.Model) -> None:
  """Folds the batch norm of every block of a network, see ConvBlock.fold.

  Not for a network that normalises by batch statistics in evaluation too.
  """
  for layer in model._flatten_layers():
    if isinstance(layer, ConvBlock):
      layer.fold()


def set_batch_norm_momentum(model: keras.Model, momentum: float) -> None:
  """Sets how much of their statistics batch norms keep in a training step.

  Args:
    model: any network; moving = momentum * moving + (1 - momentum) * batch.
    momentum: in [0, 1).
  """
  for layer in model._flatten_layers():
    if isinstance(layer, keras.layers.BatchNormalization):
      layer.momentum = momentum
