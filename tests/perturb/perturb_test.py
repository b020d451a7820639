"""The perturbation layer: its choice, its seeds, its settings and XLA."""

import keras
import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from transvw_tf2.perturb import elastic
from transvw_tf2.perturb import intensity
from transvw_tf2.perturb import paint
from transvw_tf2.perturb import perturb
from transvw_tf2.perturb import shuffle

_SHAPE = (20, 16, 12)

# Settings under which only one of the four is drawn, or none.
_ONLY = {
  name: {
    f'{other}_probability': float(other == name)
    for other in ('shuffle', 'intensity', 'inpaint', 'outpaint')
  }
  for name in ('shuffle', 'intensity', 'inpaint', 'outpaint', 'none')
}


def _seeds(count):
  rng = np.random.default_rng(45)
  return rng.integers(-(2**31), 2**31, (count, 2)).astype(np.int32)


def _cubes(count, shape=_SHAPE):
  rng = np.random.default_rng(46)
  return rng.random((count, *shape, 1)).astype(np.float32)


def _perturb_by_hand(name, cubes, seeds, variant='keras'):
  """What one of the four makes of the deformed cubes."""
  shape = cubes.shape[1:4]
  cubes = elastic.apply(cubes, elastic.draw_displacement(seeds, shape))
  fill = paint.draw_fill(seeds, shape, variant)
  if name == 'shuffle':
    return shuffle.apply(cubes, shuffle.draw_blocks(seeds, shape))
  if name == 'intensity':
    return intensity.apply(cubes, intensity.draw_curves(seeds))
  if name == 'inpaint':
    block = paint.draw_inpaint_block(seeds, shape, variant)
    return paint.inpaint(cubes, block, fill)
  if name == 'outpaint':
    block = paint.draw_outpaint_block(seeds, shape, variant)
    return paint.outpaint(cubes, block, fill)
  return cubes


@pytest.mark.parametrize('variant', ['keras', 'pytorch'])
def test_every_cube_is_deformed_and_gets_exactly_one_of_four(variant):
  cubes, seeds = _cubes(40), _seeds(40)
  layer = perturb.Perturb(variant=variant)
  got = layer(cubes, seeds).numpy()
  assert got.shape == cubes.shape and got.dtype == np.float32
  choice = layer.draw(seeds, _SHAPE).choice.numpy()
  names = ('shuffle', 'intensity', 'inpaint', 'outpaint')
  wanted = [
    _perturb_by_hand(name, cubes, seeds, variant).numpy() for name in names
  ]
  assert set(choice) == {0, 1, 2, 3}
  for number, kind in enumerate(choice):
    np.testing.assert_allclose(
      got[number], wanted[kind][number], rtol=0, atol=1e-6
    )


def test_the_four_are_equally_frequent():
  choice = perturb.Perturb().draw(_seeds(8000), (2, 2, 2)).choice.numpy()
  values, counts = np.unique(choice, return_counts=True)
  assert choice.dtype == np.int32 and values.tolist() == [0, 1, 2, 3]
  # Binomial, standard deviation 38.7 each.
  assert np.all(np.abs(counts - 2000) < 4 * 38.7)


def test_probabilities_of_the_choice():
  choice = perturb.draw_choice(_seeds(8000), (0.1, 0.0, 0.3, 0.2)).numpy()
  counts = np.bincount(choice, minlength=5)
  assert counts[1] == 0
  wanted = np.array([0.1, 0.3, 0.2, 0.4]) * 8000
  assert stats.chisquare(counts[[0, 2, 3, 4]], wanted).pvalue > 1e-3


@pytest.mark.parametrize('name', _ONLY)
def test_probability_one_and_zero(name):
  cubes, seeds = _cubes(6), _seeds(6)
  got = perturb.Perturb(**_ONLY[name])(cubes, seeds)
  want = _perturb_by_hand(name, cubes, seeds)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
  assert np.abs(got - cubes).max() > 0.05


@pytest.mark.parametrize(
  'settings', [{'elastic_probability': 0.0}, {'elastic_scale': 0}]
)
def test_without_any_perturbation_nothing_changes(settings):
  cubes = _cubes(3)
  layer = perturb.Perturb(**settings, **_ONLY['none'])
  np.testing.assert_array_equal(layer(cubes, _seeds(3)), cubes)


def test_a_run_can_be_replayed_from_its_parameters():
  cubes, seeds = _cubes(8), _seeds(8)
  layer = perturb.Perturb()
  parameters = layer.draw(seeds, _SHAPE)
  np.testing.assert_allclose(
    layer.apply(cubes, parameters), layer(cubes, seeds), rtol=0, atol=1e-6
  )


def test_a_cube_depends_on_its_own_seed_alone():
  cubes, seeds = _cubes(12), _seeds(12)
  layer = perturb.Perturb()
  together = layer(cubes, seeds).numpy()
  order = np.random.default_rng(47).permutation(12)
  np.testing.assert_allclose(
    layer(cubes[order], seeds[order]), together[order], rtol=0, atol=1e-5
  )
  for number in range(12):
    alone = layer(cubes[number : number + 1], seeds[number : number + 1])
    np.testing.assert_allclose(alone[0], together[number], rtol=0, atol=1e-5)
  # The same cube with other seeds.
  same = layer(np.repeat(cubes[:1], 12, axis=0), seeds).numpy()
  for number in range(1, 12):
    assert np.abs(same[number] - same[0]).max() > 0.05


@pytest.mark.parametrize('variant', ['keras', 'pytorch'])
def test_eager_graph_compiled_and_in_a_dataset_are_the_same(variant):
  cubes, seeds = _cubes(16), _seeds(16)
  layer = perturb.Perturb(variant=variant)
  want = layer(cubes, seeds).numpy()
  arguments = tf.constant(cubes), tf.constant(seeds)
  graph = tf.function(lambda cubes, seeds: layer(cubes, seeds))
  compiled = tf.function(
    lambda cubes, seeds: layer(cubes, seeds), jit_compile=True
  )
  dataset = tf.data.Dataset.from_tensor_slices((cubes, seeds)).batch(8)
  mapped = np.concatenate(list(dataset.map(layer).as_numpy_iterator()))
  # Rounding moves a place by 1e-5 voxels, and a curve can be steep.
  for got in (graph(*arguments), compiled(*arguments), mapped):
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-4)
    assert np.mean(np.abs(got - want)) < 2e-6


def test_compiled_with_the_published_cube():
  cubes, seeds = _cubes(4, (64, 64, 32)), _seeds(4)
  layer = perturb.Perturb()
  compiled = tf.function(
    lambda cubes, seeds: layer(cubes, seeds), jit_compile=True
  )
  got = compiled(tf.constant(cubes), tf.constant(seeds)).numpy()
  np.testing.assert_allclose(got, layer(cubes, seeds), rtol=0, atol=2e-4)
  assert np.abs(got - cubes).mean() > 0.1


@pytest.mark.long
def test_compiled_in_a_dataset():
  cubes, seeds = _cubes(16), _seeds(16)
  layer = perturb.Perturb()
  compiled = tf.function(
    lambda cubes, seeds: layer(cubes, seeds), jit_compile=True
  )
  dataset = tf.data.Dataset.from_tensor_slices((cubes, seeds)).batch(4)
  dataset = dataset.map(compiled, num_parallel_calls=2)
  got = np.concatenate(list(dataset.as_numpy_iterator()))
  np.testing.assert_allclose(got, layer(cubes, seeds), rtol=0, atol=2e-4)


def test_seeds_are_no_constants_of_the_program():
  # Where they are, XLA compiles anew for each batch.
  compiled = tf.function(
    lambda cubes, seeds: perturb.Perturb()(cubes, seeds), jit_compile=True
  )
  arguments = tf.constant(_cubes(3)), tf.constant(_seeds(3))
  program = compiled.experimental_get_compiler_ir(*arguments)(stage='hlo')
  entry = program[program.index('ENTRY') :].splitlines()
  parameters = [line for line in entry if ' parameter(' in line]
  assert len(parameters) == 2
  assert any('s32[3,2]' in parameter for parameter in parameters)


def test_an_unknown_number_of_cubes():
  layer = perturb.Perturb()
  function = tf.function(
    lambda cubes, seeds: layer(cubes, seeds),
    input_signature=[
      tf.TensorSpec((None, *_SHAPE, 1)),
      tf.TensorSpec((None, 2), tf.int32),
    ],
  )
  cubes, seeds = _cubes(3), _seeds(3)
  np.testing.assert_allclose(
    function(cubes, seeds), layer(cubes, seeds), rtol=0, atol=2e-4
  )


@pytest.mark.parametrize('variant', ['keras', 'pytorch'])
@pytest.mark.parametrize(
  'shape',
  [(1, 1, 1), (2, 3, 1), (8, 8, 8), (16, 16, 16), (32, 32, 16), (37, 50, 29)],
)
def test_other_shapes(shape, variant):
  cubes, seeds = _cubes(12, shape), _seeds(12)
  got = perturb.Perturb(variant=variant)(cubes, seeds).numpy()
  assert got.shape == cubes.shape
  assert np.all(np.isfinite(got))
  assert got.min() >= -1e-6 and got.max() <= 1 + 1e-6


def test_training_makes_no_difference():
  cubes, seeds = _cubes(4), _seeds(4)
  inputs = keras.Input((*_SHAPE, 1)), keras.Input((2,), dtype='int32')
  model = keras.Model(inputs, perturb.Perturb()(*inputs))
  assert model.output_shape == (None, *_SHAPE, 1) and not model.weights
  want = perturb.Perturb()(cubes, seeds)
  for training in (True, False):
    got = model([cubes, seeds], training=training)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_dtype():
  cubes, seeds = _cubes(4), _seeds(4)
  want = perturb.Perturb(dtype='float32')(cubes, seeds)
  got = perturb.Perturb(dtype='mixed_bfloat16')(cubes, seeds)
  assert want.dtype == tf.float32 and got.dtype == tf.bfloat16
  # Rounded at the end only.
  np.testing.assert_array_equal(
    tf.cast(got, tf.float32), tf.cast(tf.cast(want, tf.bfloat16), tf.float32)
  )
  double = perturb.Perturb(dtype='float32')(cubes.astype(np.float64), seeds)
  np.testing.assert_allclose(double, want, rtol=0, atol=1e-6)


def test_config_round_trip():
  settings = {
    'elastic_probability': 0.9,
    'elastic_sigma': 4.0,
    'elastic_scale': 300.0,
    'shuffle_probability': 0.1,
    'shuffle_blocks': 7,
    'intensity_probability': 0.2,
    'inversion_probability': 0.4,
    'inpaint_probability': 0.3,
    'outpaint_probability': 0.35,
    'variant': 'pytorch',
  }
  layer = perturb.Perturb(**settings, dtype='float32', name='noise')
  config = keras.saving.serialize_keras_object(layer)
  assert config['registered_name'] == 'transvw_tf2>Perturb'
  copy = keras.saving.deserialize_keras_object(config)
  assert copy.name == 'noise' and copy.dtype_policy.name == 'float32'
  assert {name: copy.get_config()[name] for name in settings} == settings
  cubes, seeds = _cubes(5), _seeds(5)
  np.testing.assert_array_equal(copy(cubes, seeds), layer(cubes, seeds))


def test_settings_reach_what_they_name():
  seeds = _seeds(60)
  drawn = perturb.Perturb(
    elastic_probability=0.5,
    elastic_sigma=2.0,
    elastic_scale=50.0,
    shuffle_blocks=3,
    inversion_probability=1.0,
    variant='pytorch',
  ).draw(seeds, _SHAPE)
  want = elastic.draw_displacement(
    seeds, _SHAPE, sigma=2.0, scale=50.0, probability=0.5
  )
  np.testing.assert_allclose(drawn.displacement, want, rtol=0, atol=1e-5)
  still = np.all(drawn.displacement.numpy() == 0, axis=(1, 2, 3, 4))
  assert 0 < still.sum() < 60
  assert drawn.blocks.sides.shape == (60, 3, 3)
  assert drawn.curves.falling.numpy().all()
  # A sixth to a third of 20 is painted, or all but 8 to 11.
  assert set(drawn.inpaint.sides.numpy()[:, 0]) == {3, 4, 5, 6}
  assert set(drawn.outpaint.sides.numpy()[:, 0]) == {9, 10, 11, 12}
  assert drawn.fill.shape == (60, *_SHAPE, 1)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'elastic_probability': 1.5}, r'elastic_probability is 1.5, .*\[0, 1\]'),
    ({'shuffle_probability': -0.1}, r'shuffle_probability is -0.1, wanted'),
    ({'intensity_probability': True}, 'intensity_probability is True, wanted'),
    ({'inversion_probability': 'half'}, "inversion_probability is 'half'"),
    ({'inpaint_probability': float('nan')}, 'inpaint_probability is nan'),
    ({'outpaint_probability': 0.5}, 'add up to 1.25, wanted at most 1'),
    ({'elastic_sigma': 0}, 'elastic_sigma is 0, wanted a number above 0'),
    ({'elastic_scale': -1}, 'elastic_scale is -1, wanted .* at least 0'),
    ({'elastic_scale': float('inf')}, 'elastic_scale is inf, wanted'),
    ({'shuffle_blocks': 0}, 'shuffle_blocks is 0, wanted an integer'),
    ({'shuffle_blocks': 2.0}, 'shuffle_blocks is 2.0, wanted an integer'),
    ({'variant': 'torch'}, "variant is 'torch', wanted one of .*'pytorch'"),
  ],
)
def test_bad_settings(settings, message):
  with pytest.raises(ValueError, match=message) as error:
    perturb.Perturb(**settings)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('cubes', 'seeds', 'message'),
  [
    ((2, 8, 8, 8), (2, 2), r'cubes have shape \(2, 8, 8, 8\), wanted'),
    ((2, 8, 8, 8, 3), (2, 2), r'cubes have shape .*, wanted .*z, 1\)'),
    ((2, 8, 0, 8, 1), (2, 2), 'cubes have shape .* at least 1'),
    ((2, 8, 8, 8, 1), (2,), r'seeds are int32 \(2,\), wanted int32 \(batch'),
    ((2, 8, 8, 8, 1), (2, 3), r'seeds are int32 \(2, 3\), wanted'),
  ],
)
def test_bad_shapes(cubes, seeds, message):
  with pytest.raises(ValueError, match=message):
    perturb.Perturb()(np.zeros(cubes, np.float32), np.zeros(seeds, np.int32))


def test_bad_seed_type():
  cubes, seeds = _cubes(2), tf.constant(_seeds(2), tf.int64)
  with pytest.raises(ValueError, match=r'seeds are int64 \(2, 2\), wanted'):
    perturb.Perturb()(cubes, seeds)
