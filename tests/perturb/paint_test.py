"""In-painting and out-painting against NumPy slices; all drawn intervals."""

import numpy as np
import pytest
from scipy import stats

from transvw_tf2.perturb import paint

_SHAPE = (64, 64, 32)


def _seeds(count):
  rng = np.random.default_rng(35)
  return rng.integers(-(2**31), 2**31, (count, 2)).astype(np.int32)


def _cubes(shape, count):
  rng = np.random.default_rng(36)
  return rng.random((count, *shape, 1)).astype(np.float32)


def _draw(kind, seeds, shape, variant):
  draw = {
    'inpaint': paint.draw_inpaint_block,
    'outpaint': paint.draw_outpaint_block,
  }[kind]
  return paint.Block(*(value.numpy() for value in draw(seeds, shape, variant)))


def _slices(block, number):
  return tuple(
    slice(start, start + length)
    for start, length in zip(
      block.corners[number], block.sides[number], strict=True
    )
  )


@pytest.mark.parametrize('variant', paint.VARIANTS)
@pytest.mark.parametrize('shape', [(64, 64, 32), (12, 7, 9), (1, 2, 3)])
def test_paint_equals_slices(shape, variant):
  cubes, seeds = _cubes(shape, 4), _seeds(4)
  fill = paint.draw_fill(seeds, shape, variant).numpy()
  fills = np.broadcast_to(fill, cubes.shape)
  for kind, apply in (('inpaint', paint.inpaint), ('outpaint', paint.outpaint)):
    block = _draw(kind, seeds, shape, variant)
    got = apply(cubes, block, fill).numpy()
    assert got.shape == cubes.shape and got.dtype == np.float32
    for number in range(4):
      inside = _slices(block, number)
      painted, kept = (fills, cubes) if kind == 'inpaint' else (cubes, fills)
      want = kept[number].copy()
      want[inside] = painted[number][inside]
      np.testing.assert_array_equal(got[number], want)


# Smallest and largest side along x and y, and along z, in a 64 x 64 x 32 cube.
@pytest.mark.parametrize(
  ('kind', 'variant', 'sides_xy', 'sides_z'),
  [
    ('inpaint', 'keras', (10, 20), (10, 20)),
    ('outpaint', 'keras', (44, 54), (12, 22)),
    ('inpaint', 'pytorch', (10, 21), (5, 10)),
    ('outpaint', 'pytorch', (28, 37), (14, 19)),
  ],
)
def test_drawn_sides_and_corners(kind, variant, sides_xy, sides_z):
  block = _draw(kind, _seeds(20_000), _SHAPE, variant)
  assert block.sides.dtype == block.corners.dtype == np.int32
  for axis, (smallest, largest) in enumerate((sides_xy, sides_xy, sides_z)):
    sides = block.sides[:, axis]
    values, counts = np.unique(sides, return_counts=True)
    assert values.tolist() == list(range(smallest, largest + 1))
    assert stats.chisquare(counts).pvalue > 1e-3
    for side in (smallest, largest):
      corners = block.corners[sides == side, axis]
      values, counts = np.unique(corners, return_counts=True)
      last = _SHAPE[axis] - side - 3
      assert values.tolist() == list(range(3, last + 1))
      if last > 3:
        assert stats.chisquare(counts).pvalue > 1e-4
  sides = np.corrcoef(block.sides, rowvar=False)
  np.testing.assert_allclose(sides, np.eye(3), atol=4.5 / 20_000**0.5)


@pytest.mark.parametrize('variant', paint.VARIANTS)
@pytest.mark.parametrize('kind', ['inpaint', 'outpaint'])
@pytest.mark.parametrize('shape', [(1, 2, 3), (4, 8, 16), (24, 25, 32)])
def test_blocks_fit_into_small_cubes(kind, variant, shape):
  block = _draw(kind, _seeds(3000), shape, variant)
  assert np.all(block.sides >= 1) and np.all(block.corners >= 0)
  assert np.all(block.corners + block.sides <= shape)
  for axis, length in enumerate(shape):
    # Both ends are left equally free.
    before = block.corners[:, axis].min()
    after = (length - block.corners[:, axis] - block.sides[:, axis]).min()
    assert before == after <= 3
    if length >= 8:
      assert len(set(block.sides[:, axis])) > 1
      assert len(set(block.corners[:, axis])) > 1
      assert block.sides[:, axis].max() < length


@pytest.mark.parametrize(
  ('length', 'inpainted', 'kept'),
  [
    (64, (10, 20), (44, 54)),
    (26, (10, 20), (6, 16)),
    (25, (9, 19), (6, 16)),
    (16, (6, 12), (4, 10)),
    (13, (5, 10), (3, 8)),
    (1, (1, 1), (1, 1)),
  ],
)
def test_sides_shrink_with_small_cubes(length, inpainted, kept):
  assert paint.inpaint_sides(length) == inpainted
  assert paint.outpaint_sides(length) == kept


def test_fill_of_the_keras_variant_is_one_value():
  fill = paint.draw_fill(_seeds(4000), _SHAPE).numpy()
  assert fill.shape == (4000, 1, 1, 1, 1) and fill.dtype == np.float32
  assert stats.kstest(fill.ravel(), 'uniform').pvalue > 1e-3


def test_fill_of_the_pytorch_variant_is_noise():
  fill = paint.draw_fill(_seeds(3), (16, 16, 8), paint.PYTORCH).numpy()
  assert fill.shape == (3, 16, 16, 8, 1) and fill.dtype == np.float32
  assert stats.kstest(fill.ravel(), 'uniform').pvalue > 1e-3
  for axis in (1, 2, 3):
    first, second = (
      np.take(fill, range(start, start + 7), axis=axis) for start in (0, 1)
    )
    correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert abs(correlation) < 4.5 / first.size**0.5


def test_inpainting_and_outpainting_are_independent():
  seeds = _seeds(4000)
  blocks = [
    _draw(kind, seeds, _SHAPE, 'keras') for kind in ('inpaint', 'outpaint')
  ]
  variables = np.concatenate([block.sides for block in blocks], axis=1)
  np.testing.assert_allclose(
    np.corrcoef(variables, rowvar=False), np.eye(6), atol=4.5 / 4000**0.5
  )
