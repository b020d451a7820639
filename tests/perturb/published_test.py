"""Drawn parameters, fields and perturbed cubes have the published distribution.

The other side is the published procedure in NumPy and SciPy, which shares
nothing with the layer.
"""

import numpy as np
import pytest
from scipy import ndimage
from scipy import stats

from tools.benchmarks import scipy_perturb
from transvw_tf2.perturb import elastic
from transvw_tf2.perturb import intensity
from transvw_tf2.perturb import paint
from transvw_tf2.perturb import perturb
from transvw_tf2.perturb import shuffle

_SHAPE = (64, 64, 32)
_DRAWS = 4000
_FIELDS = 200
# Below it a difference between two samples is not taken for chance.
_P_VALUE = 1e-4


def _seeds(count, seed=55):
  rng = np.random.default_rng(seed)
  return rng.integers(-(2**31), 2**31, (count, 2)).astype(np.int32)


def _block_parameters(name, corners, sides):
  """Yields (name, values) of blocks, int (N, 3) each."""
  for axis in range(3):
    corner, side = np.array(corners)[:, axis], np.array(sides)[:, axis]
    yield f'{name} side {"xyz"[axis]}', side
    yield f'{name} corner {"xyz"[axis]}', corner
    # Whether a corner depends on its side in the right way.
    yield f'{name} end {"xyz"[axis]}', corner + side


def _order_parameters(orders):
  """Yields (name, values) of permutations of 2 or more numbers."""
  orders = [order for order in orders if len(order) > 1]
  yield 'shuffle first', np.array([one[0] / (len(one) - 1) for one in orders])
  kept = [np.sum(one == np.arange(len(one))) for one in orders]
  yield 'shuffle kept', np.array(kept)


def _draw_ours():
  """Returns what the layer draws, values by name."""
  seeds = _seeds(_DRAWS)
  drawn = perturb.Perturb(elastic_probability=0.0).draw(seeds, _SHAPE)
  corners, sides, orders = (value.numpy() for value in drawn.blocks)
  corners, sides = corners.reshape(-1, 3), sides.reshape(-1, 3)
  orders = [
    order[: np.prod(side)]
    for order, side in zip(orders.reshape(len(sides), -1), sides, strict=True)
  ]
  values = {
    'choice': drawn.choice.numpy(),
    **dict(_block_parameters('shuffle', corners, sides)),
    **dict(_order_parameters(orders)),
    **{
      f'curve {name}': column
      for name, column in zip(
        'abcd', drawn.curves.points.numpy().T, strict=True
      )
    },
    'curve falling': drawn.curves.falling.numpy(),
    'keras fill': drawn.fill.numpy().ravel(),
    'pytorch fill': paint.draw_fill(_seeds(4), (10, 10, 10), 'pytorch')
    .numpy()
    .ravel(),
  }
  for variant in paint.VARIANTS:
    for kind, draw in (
      ('inpaint', paint.draw_inpaint_block),
      ('outpaint', paint.draw_outpaint_block),
    ):
      block = draw(seeds, _SHAPE, variant)
      values |= _block_parameters(f'{variant} {kind}', *block)
  return values


def _draw_published():
  """Returns what the published procedure draws, values by name."""
  rng = np.random.default_rng(56)
  blocks = [
    block
    for _ in range(_DRAWS)
    for block in scipy_perturb.draw_shuffle(rng, _SHAPE)
  ]
  corners, sides, orders = zip(*blocks, strict=True)
  curves = [scipy_perturb.draw_curve(rng) for _ in range(_DRAWS)]
  points = np.array([points for points, _ in curves])
  values = {
    'choice': np.array([scipy_perturb.draw_choice(rng) for _ in range(_DRAWS)]),
    **dict(_block_parameters('shuffle', corners, sides)),
    **dict(_order_parameters(orders)),
    **{
      f'curve {name}': column
      for name, column in zip('abcd', points.T, strict=True)
    },
    'curve falling': np.array([falling for _, falling in curves]),
    'keras fill': np.array(
      [scipy_perturb.draw_fill(rng, _SHAPE) for _ in range(_DRAWS)]
    ),
    'pytorch fill': scipy_perturb.draw_fill(rng, 4000, 'pytorch'),
  }
  for variant in paint.VARIANTS:
    for kind, draw in (
      ('inpaint', scipy_perturb.draw_inpaint_block),
      ('outpaint', scipy_perturb.draw_outpaint_block),
    ):
      block = zip(
        *(draw(rng, _SHAPE, variant) for _ in range(_DRAWS)), strict=True
      )
      values |= _block_parameters(f'{variant} {kind}', *block)
  return values


def _p_value(first, second):
  """Returns the p-value of two samples being of one distribution."""
  if first.dtype.kind == 'f':
    return stats.ks_2samp(first, second).pvalue
  values, places = np.unique(
    np.concatenate([first, second]), return_inverse=True
  )
  counts = np.array(
    [
      np.bincount(one, minlength=len(values))
      for one in np.split(places, [len(first)])
    ]
  )
  # The chi-square distribution holds for counts that are not small.
  rare = counts.sum(axis=0) < 20
  counts = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
  return stats.chi2_contingency(counts[:, counts.any(axis=0)]).pvalue


@pytest.mark.long
def test_every_parameter_is_drawn_as_published():
  ours, published = _draw_ours(), _draw_published()
  assert list(ours) == list(published) and len(ours) == 1 + 9 + 2 + 5 + 2 + 36
  p_values = {name: _p_value(ours[name], published[name]) for name in ours}
  assert {
    name: value for name, value in p_values.items() if value < _P_VALUE
  } == {}
  # Small ones are not more frequent than they are by chance.
  assert stats.kstest(list(p_values.values()), 'uniform').pvalue > 1e-3


def test_a_wrong_parameter_would_be_seen():
  rng = np.random.default_rng(57)
  sides = rng.integers(10, 21, (2, _DRAWS))
  assert _p_value(*sides) > _P_VALUE
  assert _p_value(sides[0], rng.integers(10, 20, _DRAWS)) < _P_VALUE
  assert _p_value(sides[0], rng.integers(11, 21, _DRAWS)) < _P_VALUE
  uniform = rng.random((2, _DRAWS))
  assert _p_value(*uniform) > _P_VALUE
  assert _p_value(uniform[0], uniform[1] ** 1.15) < _P_VALUE


@pytest.fixture(scope='module', name='fields')
def _drawn_fields():
  """Fields of both sides, float32 (N, X, Y, Z), x and y in turn."""
  rng = np.random.default_rng(58)
  ours = [
    elastic.draw_displacement(seeds, _SHAPE).numpy()
    for seeds in np.split(_seeds(_FIELDS, 59), 20)
  ]
  published = [
    scipy_perturb.draw_displacement(rng, _SHAPE) for _ in range(_FIELDS)
  ]
  return np.concatenate(ours).reshape(-1, *_SHAPE), np.concatenate(published)


# Parts of a cube: x and y, then z.
_PARTS = {
  'core': (slice(20, 44), slice(20, 44), slice(10, 22)),
  'x face': (slice(0, 4), slice(20, 44), slice(10, 22)),
  'y face': (slice(20, 44), slice(60, 64), slice(10, 22)),
  'z face': (slice(20, 44), slice(20, 44), slice(0, 4)),
  'edge': (slice(0, 4), slice(60, 64), slice(10, 22)),
  'corner': (slice(60, 64), slice(0, 4), slice(28, 32)),
}


@pytest.mark.parametrize('power', [1, 2])
@pytest.mark.parametrize('part', _PARTS)
def test_fields_have_the_published_mean_and_variance(fields, part, power):
  means = [
    np.mean(one[:, *_PARTS[part]] ** power, axis=(1, 2, 3), dtype=np.float64)
    for one in fields
  ]
  assert stats.ttest_ind(*means, equal_var=False).pvalue > 1e-3
  # So precise that it says something.
  scale = np.mean(fields[1][:, *_PARTS[part]] ** 2) ** (power / 2)
  assert np.hypot(*(stats.sem(one) for one in means)) < 0.12 * scale


def _products(fields, axis):
  """Returns products of values at some distances along an axis.

  The values are left and right of the middle of the axis.

  Returns:
    float64 (N, D, 3), for each field and distance the mean of left * right,
    left^2 and right^2, and int (D,), the distances in voxels.
  """
  fields = np.moveaxis(fields, axis + 1, 1)
  # Of the other axes the middle; neighbours there say the same.
  thirds = (slice(size // 3, -(size // 3), 4) for size in fields.shape[2:])
  fields = fields[:, :, *thirds].astype(np.float64)
  middle = fields.shape[1] // 2
  half = np.arange(1, middle)
  left, right = fields[:, middle - half], fields[:, middle + half]
  products = np.stack([left * right, left**2, right**2], axis=-1)
  return products.mean(axis=(2, 3)), 2 * half


def _correlation_length(products, distances):
  """Returns the distance, voxels, at which the correlation falls to 1 / e."""
  covariance, left, right = products.mean(axis=0).T
  correlation = covariance / np.sqrt(left * right)
  first = int(np.argmax(correlation < np.exp(-1)))
  assert first > 0
  around = slice(first - 1, first + 1)
  # From the larger distance to the smaller the correlation rises.
  return np.interp(
    np.exp(-1), correlation[around][::-1], distances[around][::-1]
  )


def _estimate_length(fields, axis):
  """Returns the correlation length and its standard error (jackknife)."""
  products, distances = _products(fields, axis)
  parts = np.split(np.arange(len(products)), 20)
  left_out = [
    _correlation_length(np.delete(products, part, axis=0), distances)
    for part in parts
  ]
  error = np.sqrt(19 / 20 * np.sum((left_out - np.mean(left_out)) ** 2))
  return _correlation_length(products, distances), error


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_fields_have_the_published_correlation_length(fields, axis):
  (ours, our_error), (published, error) = (
    _estimate_length(one, axis) for one in fields
  )
  assert abs(ours - published) < 4 * np.hypot(our_error, error)
  assert np.hypot(our_error, error) < 0.1 * published
  # Far from a border noise filtered with sigma is correlated over a distance d
  # by exp(-d^2 / (4 sigma^2)), so by 1 / e over 2 sigma.
  if axis < 2:
    assert ours == pytest.approx(16, abs=4 * our_error)


def _make_cubes(count, shape):
  """Soft tissue and lung with noise, float32 (B, X, Y, Z, 1)."""
  rng = np.random.default_rng(60)
  smooth = [
    ndimage.gaussian_filter(rng.standard_normal(shape), 5) for _ in range(count)
  ]
  cubes = np.where(np.array(smooth) > 0, 0.52, 0.07)
  cubes += 0.01 * rng.standard_normal(cubes.shape)
  return np.clip(cubes, 0, 1).astype(np.float32)[..., np.newaxis]


def _perturb_with_scipy(cube, kind, variant, rng):
  displacement = scipy_perturb.draw_displacement(rng, cube.shape)
  cube = scipy_perturb.deform(cube, displacement)
  if kind == 'none':
    return cube
  choice = ('shuffle', 'intensity', 'inpaint', 'outpaint').index(kind)
  return scipy_perturb.apply_choice(cube, choice, rng, variant)


def _check_errors(shape, count, precision, kind, variant):
  """Compares the mean squared errors of perturbed cubes.

  Args:
    shape: of the cubes.
    count: cubes.
    precision: of the mean error, a part of it.
    kind: of the perturbation after deformation, or 'none'.
    variant: 'keras' or 'pytorch'.
  """
  cubes = _make_cubes(count, shape)
  others = ('shuffle', 'intensity', 'inpaint', 'outpaint')
  layer = perturb.Perturb(
    **{f'{one}_probability': float(one == kind) for one in others},
    variant=variant,
    dtype='float32',
  )
  ours = [
    layer(cubes[part], _seeds(count, 61)[part]).numpy()
    for part in np.split(np.arange(count), max(1, count // 40))
  ]
  rng = np.random.default_rng(62)
  published = [
    _perturb_with_scipy(cube, kind, variant, rng) for cube in cubes[..., 0]
  ]
  errors = [
    np.mean((np.reshape(one, cubes.shape) - cubes) ** 2, axis=(1, 2, 3, 4))
    for one in (np.concatenate(ours), published)
  ]
  assert stats.ks_2samp(*errors).pvalue > 1e-3
  assert stats.ttest_rel(*errors).pvalue > 1e-3
  difference = stats.sem(errors[0] - errors[1])
  assert difference < precision * np.mean(errors[1])


_KINDS = [
  ('none', 'keras'),
  ('shuffle', 'keras'),
  ('intensity', 'keras'),
  ('inpaint', 'keras'),
  ('outpaint', 'keras'),
  ('inpaint', 'pytorch'),
  ('outpaint', 'pytorch'),
]


@pytest.mark.parametrize(('kind', 'variant'), _KINDS)
def test_perturbed_cubes_are_as_far_from_the_cubes(kind, variant):
  _check_errors((30, 40, 26), 80, 0.2, kind, variant)


@pytest.mark.long
@pytest.mark.parametrize(('kind', 'variant'), _KINDS)
def test_perturbed_published_cubes_are_as_far_from_the_cubes(kind, variant):
  _check_errors(_SHAPE, 400, 0.08, kind, variant)


# The procedure itself: what it makes of given parameters.


def test_scipy_shuffles_curves_and_paints():
  rng = np.random.default_rng(63)
  cube = rng.random((20, 20, 20), np.float32)
  blocks = [((1, 2, 3), (2, 1, 2), np.array([3, 2, 1, 0]))]
  got = scipy_perturb.apply_shuffle(cube, blocks)
  want = cube.copy()
  want[1:3, 2:3, 3:5] = cube[1:3, 2:3, 3:5][::-1, :, ::-1]
  np.testing.assert_array_equal(got, want)

  points = np.array([0.2, 0.7, 0.5, 0.9], np.float32)
  for falling in (False, True):
    curves = intensity.Curves(points[np.newaxis], np.array([falling]))
    want = intensity.apply(cube[np.newaxis, ..., np.newaxis], curves)
    got = scipy_perturb.apply_curve(cube, points, falling)
    np.testing.assert_allclose(got, want[0, ..., 0], atol=1e-5)

  blocks = shuffle.draw_blocks(_seeds(1), cube.shape)
  want = shuffle.apply(cube[np.newaxis, ..., np.newaxis], blocks)
  corners, sides, orders = (value.numpy()[0] for value in blocks)
  orders = [
    order[: np.prod(side)] for order, side in zip(orders, sides, strict=True)
  ]
  got = scipy_perturb.apply_shuffle(
    cube, list(zip(corners, sides, orders, strict=True))
  )
  np.testing.assert_array_equal(got, want[0, ..., 0])
