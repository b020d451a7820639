"""The perturbation of cubes that the network learns to undo, as one layer.

Elastic deformation, then at most one of local shuffling, non-linear intensity,
in-painting and out-painting (25 % each as published).
"""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from transvw_tf2.perturb import elastic
from transvw_tf2.perturb import intensity
from transvw_tf2.perturb import paint
from transvw_tf2.perturb import random_numbers
from transvw_tf2.perturb import shuffle

# Values of a choice.
SHUFFLE = 0
INTENSITY = 1
INPAINT = 2
OUTPAINT = 3
NONE = 4


class Parameters(NamedTuple):
  """All that is drawn for B cubes; None where its probability is 0.

  Attributes:
    choice: int32 (B,), SHUFFLE, INTENSITY, INPAINT, OUTPAINT or NONE.
    displacement: float32 (B, 2, X, Y, Z), see elastic.
    blocks: see shuffle.
    curves: see intensity.
    inpaint: block to be painted, see paint.
    outpaint: block to be kept, see paint.
    fill: float32 (B, 1, 1, 1, 1) or (B, X, Y, Z, 1), what is painted.
  """

  choice: tf.Tensor
  displacement: tf.Tensor | None
  blocks: shuffle.Blocks | None
  curves: intensity.Curves | None
  inpaint: paint.Block | None
  outpaint: paint.Block | None
  fill: tf.Tensor | None


def draw_choice(seeds, probabilities: tuple[float, ...]):
  """Draws which of several perturbations each cube gets.

  Args:
    seeds: int32 (B, 2), one seed for each cube.
    probabilities: of 0, 1, ..., n - 1; the rest is that of n, none of them.

  Returns:
    int32 (B,) in [0, n].
  """
  uniform = random_numbers.draw_uniform(
    seeds, random_numbers.Stream.CHOICE, (1,)
  )
  bounds = np.cumsum(probabilities).astype(np.float32)
  return tf.reduce_sum(tf.cast(uniform >= bounds, tf.int32), axis=1)


@keras.saving.register_keras_serializable(package='transvw_tf2')
class Perturb(keras.layers.Layer):
  """Perturbs cubes, each by its own seed.

  What a cube becomes depends on the cube, its seed and the settings alone: not
  on the batch, its place there, training or inference, or XLA.
  """

  def __init__(
    self,
    elastic_probability: float = 1.0,
    elastic_sigma: float = 8.0,
    elastic_scale: float = 991.0,
    shuffle_probability: float = 0.25,
    shuffle_blocks: int = 5,
    intensity_probability: float = 0.25,
    inversion_probability: float = 0.5,
    inpaint_probability: float = 0.25,
    outpaint_probability: float = 0.25,
    variant: str = paint.KERAS,
    **kwargs,
  ):
    """Initialises the layer with the published settings.

    Args:
      elastic_probability: of elastic deformation.
      elastic_sigma: of the Gaussian filter of its noise, voxels.
      elastic_scale: of the filtered noise, voxels.
      shuffle_probability: of local shuffling. The probabilities of shuffling,
        intensity, in-painting and out-painting add up to at most 1; the rest
        is the probability of none of them.
      shuffle_blocks: how many blocks are shuffled.
      intensity_probability: of a non-linear intensity curve.
      inversion_probability: of a falling curve, where there is a curve.
      inpaint_probability: of in-painting.
      outpaint_probability: of out-painting.
      variant: 'keras', or 'pytorch' for painted blocks in proportion to the
        cube, filled with a random value in each voxel.
      **kwargs: passed to keras.layers.Layer; the result has the layer's dtype,
        inside all is float32.

    Raises:
      ValueError: a setting is outside its range.
    """
    # The cubes must not be rounded to a half type before they are perturbed.
    super().__init__(**kwargs, autocast=False)
    chosen = {
      'shuffle_probability': shuffle_probability,
      'intensity_probability': intensity_probability,
      'inpaint_probability': inpaint_probability,
      'outpaint_probability': outpaint_probability,
    }
    _check_probabilities(
      elastic_probability=elastic_probability,
      inversion_probability=inversion_probability,
      **chosen,
    )
    _check_sum(chosen)
    _check_number('elastic_sigma', elastic_sigma, zero_allowed=False)
    _check_number('elastic_scale', elastic_scale, zero_allowed=True)
    _check_count('shuffle_blocks', shuffle_blocks)
    if variant not in paint.VARIANTS:
      raise ValueError(
        f'variant is {variant!r}, wanted one of {paint.VARIANTS}'
      )
    self.elastic_probability = elastic_probability
    self.elastic_sigma = elastic_sigma
    self.elastic_scale = elastic_scale
    self.shuffle_probability = shuffle_probability
    self.shuffle_blocks = shuffle_blocks
    self.intensity_probability = intensity_probability
    self.inversion_probability = inversion_probability
    self.inpaint_probability = inpaint_probability
    self.outpaint_probability = outpaint_probability
    self.variant = variant

  def call(self, cubes, seeds):
    """Perturbs cubes.

    Args:
      cubes: float (B, X, Y, Z, 1) in [0, 1]; X, Y and Z are known.
      seeds: int32 (B, 2), one seed for each cube.

    Returns:
      (B, X, Y, Z, 1) in [0, 1], of the layer's dtype.

    Raises:
      ValueError: cubes or seeds of another shape or dtype.
    """
    _check_inputs(cubes, seeds)
    parameters = self.draw(seeds, tuple(cubes.shape[1:4]))
    return tf.cast(self.apply(cubes, parameters), self.compute_dtype)

  def draw(self, seeds, cube_shape: tuple[int, int, int]) -> Parameters:
    """Draws what `apply` does.

    Args:
      seeds: int32 (B, 2), one seed for each cube.
      cube_shape: (X, Y, Z) voxels.
    """
    displacement = blocks = curves = inpaint = outpaint = fill = None
    if self.elastic_probability and self.elastic_scale:
      displacement = elastic.draw_displacement(
        seeds,
        cube_shape,
        sigma=self.elastic_sigma,
        scale=self.elastic_scale,
        probability=self.elastic_probability,
      )
    if self.shuffle_probability:
      blocks = shuffle.draw_blocks(seeds, cube_shape, self.shuffle_blocks)
    if self.intensity_probability:
      curves = intensity.draw_curves(seeds, self.inversion_probability)
    if self.inpaint_probability:
      inpaint = paint.draw_inpaint_block(seeds, cube_shape, self.variant)
    if self.outpaint_probability:
      outpaint = paint.draw_outpaint_block(seeds, cube_shape, self.variant)
    if self.inpaint_probability or self.outpaint_probability:
      # A cube gets one of the two, so they share it.
      fill = paint.draw_fill(seeds, cube_shape, self.variant)
    probabilities = (
      self.shuffle_probability,
      self.intensity_probability,
      self.inpaint_probability,
      self.outpaint_probability,
    )
    choice = draw_choice(seeds, probabilities)
    return Parameters(
      choice, displacement, blocks, curves, inpaint, outpaint, fill
    )

  def apply(self, cubes, parameters: Parameters):
    """Perturbs cubes as drawn.

    Args:
      cubes: float (B, X, Y, Z, 1) in [0, 1].
      parameters: of `draw`, for these cubes.

    Returns:
      float32 (B, X, Y, Z, 1).
    """
    cubes = tf.cast(cubes, tf.float32)
    choice = tf.reshape(parameters.choice, (-1, 1, 1, 1, 1))
    if parameters.displacement is not None:
      cubes = elastic.apply(cubes, parameters.displacement)
    # A cube gets at most one of the four, so their order is free. In this order
    # XLA does deformation and painting in one pass.
    if parameters.inpaint is not None:
      painted = paint.inpaint(cubes, parameters.inpaint, parameters.fill)
      cubes = tf.where(choice == INPAINT, painted, cubes)
    if parameters.outpaint is not None:
      painted = paint.outpaint(cubes, parameters.outpaint, parameters.fill)
      cubes = tf.where(choice == OUTPAINT, painted, cubes)
    if parameters.blocks is not None:
      chosen = parameters.choice == SHUFFLE
      cubes = _map_chosen(shuffle.apply, cubes, parameters.blocks, chosen)
    if parameters.curves is not None:
      chosen = parameters.choice == INTENSITY
      cubes = _map_chosen(intensity.apply, cubes, parameters.curves, chosen)
    return cubes

  def compute_output_shape(self, cubes_shape, seeds_shape):
    return cubes_shape

  def get_config(self):
    return {
      **super().get_config(),
      'elastic_probability': self.elastic_probability,
      'elastic_sigma': self.elastic_sigma,
      'elastic_scale': self.elastic_scale,
      'shuffle_probability': self.shuffle_probability,
      'shuffle_blocks': self.shuffle_blocks,
      'intensity_probability': self.intensity_probability,
      'inversion_probability': self.inversion_probability,
      'inpaint_probability': self.inpaint_probability,
      'outpaint_probability': self.outpaint_probability,
      'variant': self.variant,
    }


def _map_chosen(function, cubes, parameters, chosen):
  """Applies a function to the chosen cubes, one after the other.

  On CPU a curve costs a cube as much as all else together, and few cubes have
  one. The loop also has XLA compute its input once, in memory; what is used
  twice outside a loop, as by shuffling, may be computed twice.

  Args:
    function: takes float32 (1, X, Y, Z, 1) and the parameters of that cube;
      returns the same shape.
    cubes: float32 (B, X, Y, Z, 1).
    parameters: named tuple of tensors (B, ...).
    chosen: bool (B,).

  Returns:
    float32 (B, X, Y, Z, 1).
  """
  order = tf.argsort(tf.cast(chosen, tf.int32), direction='DESCENDING')
  count = tf.reduce_sum(tf.cast(chosen, tf.int32))

  def replace(step, cubes):
    # By a scalar, for XLA to slice and update in place. Not cubes[number]: that
    # makes it a constant of the program, to be compiled anew for all seeds.
    number = tf.gather(order, step)
    one = (tf.gather(value, number)[tf.newaxis] for value in parameters)
    cube = tf.gather(cubes, number)[tf.newaxis]
    result = function(cube, type(parameters)(*one))
    return step + 1, tf.tensor_scatter_nd_update(cubes, [[number]], result)

  return tf.while_loop(lambda step, _: step < count, replace, (0, cubes))[1]


def _is_number(value):
  return isinstance(value, int | float) and not isinstance(value, bool)


def _check_probabilities(**settings):
  for name, value in settings.items():
    if not _is_number(value) or not 0 <= value <= 1:
      raise ValueError(
        f'{name} is {value!r}, wanted a number in [0, 1]: change {name}'
      )


def _check_sum(probabilities):
  total = sum(probabilities.values())
  if total > 1 + 1e-6:
    raise ValueError(
      f'{", ".join(probabilities)} add up to {total:g}, wanted at most 1 (the '
      'rest is the probability of none): lower them'
    )


def _check_number(name, value, zero_allowed):
  wanted = 'of at least 0' if zero_allowed else 'above 0'
  if not _is_number(value) or not (
    0 < value < float('inf') or (zero_allowed and value == 0)
  ):
    raise ValueError(
      f'{name} is {value!r}, wanted a number {wanted} (voxels): change {name}'
    )


def _check_count(name, value):
  if isinstance(value, bool) or not isinstance(value, int) or value < 1:
    raise ValueError(
      f'{name} is {value!r}, wanted an integer of at least 1: change {name}'
    )


def _check_inputs(cubes, seeds):
  shape = tuple(cubes.shape)
  if len(shape) != 5 or shape[4] != 1 or not all(shape[1:4]):
    raise ValueError(
      f'cubes have shape {shape}, wanted (batch, x, y, z, 1) with x, y and z '
      'known and at least 1: set the shape of the cubes'
    )
  if len(seeds.shape) != 2 or seeds.shape[1] != 2 or seeds.dtype != tf.int32:
    raise ValueError(
      f'seeds are {tf.as_dtype(seeds.dtype).name} {tuple(seeds.shape)}, wanted '
      'int32 (batch, 2): one seed for each cube'
    )
