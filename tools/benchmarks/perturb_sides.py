"""What `perturb` measures, each in a process of its own on one core.

Runs as a script, started by perturb.py: a line on stdin names a side, and how
many seconds to go on for; the answer on stdout is cubes per second.

All elastic deformations have the published settings, as far as a package can
express them: uniform(-1, 1) noise filtered with a Gaussian of sigma 8 voxels,
times 991, as displacement in x and y, linear interpolation, mirrored borders.
"""

import argparse
import json
import os
import time
import warnings

_SHAPE = (64, 64, 32)
_CUBES = 32  # that a side goes through, again and again
_THREADS = (
  'OMP_NUM_THREADS',
  'OPENBLAS_NUM_THREADS',
  'MKL_NUM_THREADS',
  'ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS',
)


def make_cubes():
  """Returns float32 (N, 64, 64, 32) in [0, 1]: soft tissue and lung, noise."""
  import numpy as np
  from scipy import ndimage

  rng = np.random.default_rng(1)
  cubes = np.empty((_CUBES, *_SHAPE), np.float32)
  for cube in cubes:
    smooth = ndimage.gaussian_filter(rng.standard_normal(_SHAPE), 6)
    noise = 0.01 * rng.standard_normal(_SHAPE)
    cube[...] = np.clip(np.where(smooth > 0, 0.52, 0.07) + noise, 0, 1)
  return cubes


def make_scipy():
  """Returns the published procedure's sides: functions of a cube, by name."""
  import numpy as np
  import scipy_perturb  # beside this file, which runs as a script

  rng = np.random.default_rng(2)

  def elastic(cube):
    displacement = scipy_perturb.draw_displacement(rng, cube.shape)
    return scipy_perturb.deform(cube, displacement)

  return {
    'published': lambda cube: scipy_perturb.perturb(cube, rng),
    'published_pytorch': lambda cube: scipy_perturb.perturb(
      cube, rng, scipy_perturb.PYTORCH
    ),
    'elastic_scipy': elastic,
  }


def make_batchgenerators():
  """Returns elastic deformation by batchgenerators.

  Its field has the same noise, filter and factor, in all three axes: there is
  one factor for all.
  """
  from batchgenerators.augmentations import spatial_transformations
  import numpy as np

  np.random.seed(3)

  def elastic(cube):
    deformed, _ = spatial_transformations.augment_spatial(
      cube[None, None],
      None,
      cube.shape,
      do_elastic_deform=True,
      alpha=(991, 991),
      sigma=(8, 8),
      do_rotation=False,
      do_scale=False,
      border_mode_data='reflect',
      order_data=1,
      random_crop=False,
    )
    return deformed[0, 0]

  return {'elastic_batchgenerators': elastic}


def make_torchio():
  """Returns elastic deformation by TorchIO.

  Its field is a cubic B-spline of control points, uniform in (-d, d). The
  spline spreads a point with a standard deviation of 0.58 of their distance,
  the Gaussian one of 8 voxels: so they are 14 voxels apart, 5 x 5 x 2 intervals
  and 3 points more along each axis. d = 20 voxels in x and y makes the standard
  deviation at the centre 3.8 voxels, as published.
  """
  import torch
  import torchio

  torch.set_num_threads(1)
  torch.manual_seed(3)
  transform = torchio.RandomElasticDeformation(
    num_control_points=(8, 8, 5), max_displacement=(20, 20, 0), locked_borders=0
  )
  # Of folds: the published field has them too.
  warnings.simplefilter('ignore')
  return {'elastic_torchio': lambda cube: transform(torch.tensor(cube[None]))}


def make_monai():
  """Returns elastic deformation by MONAI.

  Its field has the same noise, filter (cut at 3 sigmas instead of 4) and
  factor, in all three axes: there is one factor for all.
  """
  from monai import transforms
  import torch

  torch.set_num_threads(1)
  transform = transforms.Rand3DElastic(
    sigma_range=(8, 8),
    magnitude_range=(991, 991),
    prob=1.0,
    mode='bilinear',
    padding_mode='reflection',
  )
  transform.set_random_state(3)
  return {'elastic_monai': lambda cube: transform(torch.tensor(cube[None]))}


# What makes the sides of a process: functions of one cube.
MAKERS = {
  'scipy': make_scipy,
  'batchgenerators': make_batchgenerators,
  'torchio': make_torchio,
  'monai': make_monai,
}


def measure(side, cubes, seconds):
  """Returns cubes per second of a function of one cube."""
  count, start = 0, time.perf_counter()
  while time.perf_counter() - start < seconds:
    side(cubes[count % len(cubes)])
    count += 1
  return count / (time.perf_counter() - start)


class Ours:
  """Our sides; all perturb one batch again and again, each time otherwise."""

  def __init__(self, cubes, batch):
    """Initialises the sides.

    Args:
      cubes: of make_cubes.
      batch: cubes per call.
    """
    import numpy as np
    import tensorflow as tf

    from transvw_tf2.perturb import elastic
    from transvw_tf2.perturb import perturb

    self._np, self._tf, self._cubes = np, tf, cubes[..., np.newaxis]
    self._rng = np.random.default_rng(3)
    layer = perturb.Perturb(dtype='float32')
    pytorch = perturb.Perturb(variant='pytorch', dtype='float32')

    def deform(cubes, seeds):
      field = elastic.draw_displacement(seeds, tuple(cubes.shape[1:4]))
      return elastic.apply(cubes, field)

    def function(layer, jit_compile=True):
      return tf.function(
        lambda cubes, seeds: layer(cubes, seeds), jit_compile=jit_compile
      )

    compiled, uncompiled = function(layer), function(layer, jit_compile=False)
    self._batches = {
      'ours': self._call(compiled, batch),
      'ours_batch_1': self._call(compiled, 1),
      'ours_batch_16': self._call(compiled, 16),
      'ours_in_tf_data': self._map(compiled, batch),
      'ours_uncompiled': self._call(uncompiled, batch),
      'ours_uncompiled_in_tf_data': self._map(uncompiled, batch),
      'ours_pytorch': self._call(function(pytorch), batch),
      'elastic': self._call(function(deform), batch),
    }

  def measure(self, side, seconds):
    """Returns cubes per second."""
    batches = self._batches[side]
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
      count += len(next(batches))
    return count / (time.perf_counter() - start)

  def _call(self, function, batch):
    """Yields perturbed batches, by calls."""
    cubes = self._make_batch(batch)
    while True:
      seeds = self._rng.integers(-(2**31), 2**31, (batch, 2), 'int32')
      yield function(cubes, self._tf.constant(seeds))

  def _map(self, function, batch):
    """Yields perturbed batches, by Dataset.map."""
    tf = self._tf
    cubes = self._make_batch(batch)

    def perturb(step):
      number = batch * tf.cast(step, tf.int32) + tf.range(batch)
      return function(cubes, tf.stack([tf.fill([batch], 3), number], axis=1))

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    yield from tf.data.Dataset.range(2**20).map(perturb).with_options(options)

  def _make_batch(self, batch):
    cubes = self._cubes[self._np.arange(batch) % len(self._cubes)]
    return self._tf.constant(cubes)


def _make_answer(settings):
  """Returns what measures a side, from a line with its name and seconds."""
  # Before any library makes threads.
  os.sched_setaffinity(0, [settings['core']])
  os.environ.update(dict.fromkeys(_THREADS, '1'))
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'
  cubes = make_cubes()
  if settings['process'] == 'ours':
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    measure_side = Ours(cubes, settings['batch']).measure
  else:
    sides = MAKERS[settings['process']]()

    def measure_side(side, seconds):
      return measure(sides[side], cubes, seconds)

  def answer(line):
    side, seconds = line.split()
    return measure_side(side, float(seconds))

  return answer


if __name__ == '__main__':
  import side_process  # beside this file, which runs as a script

  _parser = argparse.ArgumentParser()
  _parser.add_argument('settings', type=json.loads)
  _settings = _parser.parse_args().settings
  side_process.serve(lambda: _make_answer(_settings))
