"""Target tasks: losses and metrics by hand, mirrored cubes, frozen layers."""

import functools
import itertools

import gin
import keras
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2 import models
from transvw_tf2.training import built_data
from transvw_tf2.training import checkpoints
from transvw_tf2.training import devices
from transvw_tf2.training import freezing
from transvw_tf2.training import gin_files
from transvw_tf2.training import input_pipeline
from transvw_tf2.training import label_fraction
from transvw_tf2.training import loop
from transvw_tf2.training import schedules
from transvw_tf2.training import settings as settings_lib
from transvw_tf2.training import target_tasks

_SHAPE = tiny_data.CUBE_SHAPE
_SIZES = {'base_filters': 2, 'depth': 2}


@pytest.fixture(scope='module', name='data_dir')
def _data_dir(tmp_path_factory):
  return tiny_data.write_targets(tmp_path_factory.mktemp('targets'))


def _classification(**settings):
  model = functools.partial(models.build_classifier, **_SIZES)
  return target_tasks.Classification(model, **settings)


def _segmentation(**settings):
  model = functools.partial(models.build_unet3d, **_SIZES)
  return target_tasks.Segmentation(model, **settings)


def _train(workdir, data_dir, **settings):
  return loop.train(
    str(workdir),
    devices.make_strategy('cpu'),
    tiny_data.make_settings(data_dir, **settings),
  )


def test_data_hold_classes_masks_and_patients(data_dir):
  data = built_data.open_data(data_dir, ('cube', 'mask', 'label', 'scan_id'))
  assert data.classes == ('empty', 'box')
  batch = next(iter(input_pipeline.make_dataset(data, 'test', 4)))
  assert batch['mask'].shape == (4, *_SHAPE, 1)
  assert batch['mask'].dtype == tf.float32
  assert set(np.unique(batch['mask'])) == {0.0, 1.0}
  assert batch['label'].dtype == tf.int32
  assert batch['scan_id'].numpy()[0].startswith(b'test.')


def test_dice_loss_equals_numpy_and_leaves_out_padding():
  rng = np.random.default_rng(0)
  outputs = rng.random((3, 4, 4, 2, 1)).astype(np.float32)
  mask = (rng.random(outputs.shape) < 0.3).astype(np.float32)
  batch = {'mask': mask, 'weight': tf.constant([1.0, 1.0, 0.0])}
  loss = _segmentation().losses(outputs, batch, None)['loss']
  t, y = mask[:2], outputs[:2]
  want = 1 - (2 * (t * y).sum() + 1) / (t.sum() + y.sum() + 1)
  np.testing.assert_allclose(loss, np.full(3, want), rtol=1e-6)


def test_iou_and_dice_equal_scikit_learn():
  rng = np.random.default_rng(1)
  outputs = rng.random((3, 4, 4, 2, 1)).astype(np.float32)
  mask = (rng.random(outputs.shape) < 0.4).astype(np.float32)
  weight = tf.constant([1.0, 1.0, 0.0])
  totals = _segmentation().totals(outputs, {'mask': mask, 'weight': weight})
  found = _segmentation().summarize(totals)
  true, scores = mask[:2].ravel(), outputs[:2].ravel()
  named = scores >= 0.5
  assert found['iou'] == pytest.approx(
    sklearn_metrics.jaccard_score(true, named)
  )
  assert found['dice'] == pytest.approx(sklearn_metrics.f1_score(true, named))
  ious = [
    sklearn_metrics.jaccard_score(
      true, scores >= np.float32(one), average='macro'
    )
    for one in np.arange(0.5, 0.96, 0.05)
  ]
  assert found['mean_iou'] == pytest.approx(np.mean(ious))


def test_nothing_there_and_nothing_found_is_perfect():
  counts = np.zeros((10, 2, 2))
  counts[:, 0, 0] = 5
  assert target_tasks.summarize_counts(counts)['iou'] == 1.0


@pytest.mark.parametrize('classes', [2, 3])
def test_auc_equals_scikit_learn(classes):
  rng = np.random.default_rng(2)
  label = rng.integers(0, classes, 60)
  scores = rng.random((60, classes)) + 0.8 * np.eye(classes)[label]
  scores /= scores.sum(1, keepdims=True)
  outputs = {'probabilities': tf.constant(scores, tf.float32)}
  batch = {'label': tf.constant(label, tf.int32), 'weight': tf.ones(60)}
  task = _classification()
  task.prepare(
    built_data.Data(
      data_dir='nowhere',
      builder=None,
      features=task.features,
      shape=_SHAPE,
      words=(),
      sizes={},
      classes=tuple('abc'[:classes]),
    )
  )
  totals = {k: v.numpy() for k, v in task.totals(outputs, batch).items()}
  areas = [
    sklearn_metrics.roc_auc_score(label == one, scores[:, one])
    for one in range(classes)
  ]
  want = areas[1] if classes == 2 else np.mean(areas)
  # Scores that share a bin count as equal.
  assert task.summarize(totals)['auc'] == pytest.approx(want, abs=1e-3)
  assert set(task.figures(totals)) == {'roc'}


@pytest.mark.parametrize('spread', [0.01, 1, 15])
def test_auc_of_scores_that_are_sure_and_unsure(spread):
  task = target_tasks.Classification()
  task._classes = ('no', 'yes')
  rng = np.random.default_rng(5)
  label = np.arange(2000) % 2
  logits = spread * (rng.normal(size=2000) + label - 0.5)
  scores = 1 / (1 + np.exp(-logits))
  outputs = {
    'probabilities': np.stack([1 - scores, scores], 1).astype(np.float32)
  }
  batch = {'label': label, 'weight': np.ones(2000, np.float32)}
  totals = {k: v.numpy() for k, v in task.totals(outputs, batch).items()}
  want = sklearn_metrics.roc_auc_score(label, logits)
  assert task.summarize(totals)['auc'] == pytest.approx(want, abs=2e-3)


def test_a_missing_class_has_no_auc():
  for rates in target_tasks.roc_of_counts(np.ones(4), np.zeros(4)):
    assert np.isnan(rates).all()


def test_cubes_and_masks_are_mirrored_together():
  cube = tf.random.stateless_uniform((64, *_SHAPE, 1), (1, 2))
  seeds = tf.stack([tf.range(64), tf.range(64)], axis=1)
  batch = {'cube': cube, 'mask': cube + 1.0, 'label': tf.range(64)}
  changed = _segmentation(mirror='xz').augment(batch, seeds)
  np.testing.assert_array_equal(changed['cube'] + 1.0, changed['mask'])
  np.testing.assert_array_equal(changed['label'], batch['label'])
  kinds = {(): 0, (0,): 0, (2,): 0, (0, 2): 0}
  for before, after in zip(cube.numpy(), changed['cube'].numpy(), strict=True):
    (kind,) = (
      axes for axes in kinds if np.array_equal(np.flip(before, axes), after)
    )
    kinds[kind] += 1
  # 16 of each expected, sd 3.5.
  assert min(kinds.values()) >= 5
  same = _segmentation().augment(batch, seeds)
  np.testing.assert_array_equal(same['cube'], cube)


@pytest.mark.parametrize('mirror', ['w', 'xx'])
def test_refuses_axes(mirror):
  with pytest.raises(errors.UserError, match='mirror is'):
    _segmentation(mirror=mirror)


def test_learns_to_classify_and_goes_on(data_dir, tmp_path):
  settings = {'task': _classification, 'learning_rate': 1e-2}
  _train(tmp_path / 'w', data_dir, epochs=3, **settings)
  rows = _train(tmp_path / 'w', data_dir, epochs=14, **settings)
  assert [row['epoch'] for row in rows] == list(range(1, 15))
  assert rows[-1]['train/loss'] < 0.5 * rows[0]['train/loss']
  assert max(row['validation/auc'] for row in rows) > 0.9
  model, description = checkpoints.load_model(str(tmp_path / 'w'))
  assert description['classes'] == ['empty', 'box']
  assert model.num_classes == 2


def test_learns_to_segment(data_dir, tmp_path):
  rows = _train(
    tmp_path / 'w',
    data_dir,
    task=functools.partial(_segmentation, mirror='xy'),
    epochs=14,
    learning_rate=1e-2,
    # So few steps: otherwise validation hangs on the seed.
    schedule=lambda: schedules.CosineDecay(14),
    batch_norm_momentum=0.8,
  )
  assert rows[-1]['train/loss'] < 0.9 * rows[0]['train/loss']
  assert rows[-1]['validation/iou'] > 0.7


def test_cubes_are_augmented_in_training_alone(data_dir, tmp_path):
  sides = []

  class Halves(target_tasks.Classification):
    def augment(self, batch, seeds):
      del seeds
      return {**batch, 'cube': batch['cube'][:, :8]}

    def losses(self, outputs, batch, inputs):
      sides.append(inputs.shape[1])
      return super().losses(outputs, batch, inputs)

  task = functools.partial(
    Halves, functools.partial(models.build_classifier, **_SIZES)
  )
  _train(tmp_path, data_dir, task=task, epochs=1)
  # Traced once in training, then once in validation.
  assert sides == [8, 16]


@pytest.mark.parametrize(
  ('task', 'metric'),
  [
    (_classification, 'accuracy'),
    (_classification, 'auc'),
    (_segmentation, 'iou'),
    (_segmentation, 'dice'),
    (_segmentation, 'mean_iou'),
  ],
)
def test_each_rising_metric_can_choose_the_best(
  data_dir, tmp_path, task, metric
):
  assert metric in task().rising_metrics
  rows = _train(
    tmp_path / 'w', data_dir, task=task, epochs=3, best_metric=metric
  )
  values = [row[f'validation/{metric}'] for row in rows]
  _, description = checkpoints.load_model(str(tmp_path / 'w'), 'best')
  assert description['epoch'] == 1 + int(np.argmax(values))


def test_features_of_the_centre_find_what_is_small():
  """Voxels in the middle tell classes apart, all the others do not."""
  rng = np.random.default_rng(1)
  cubes = rng.random((64, 16, 16, 16, 1)).astype(np.float32)
  labels = np.arange(64) % 2
  cubes[:, 7:9, 7:9, 7:9] += labels[:, None, None, None, None]
  areas = {}
  for centre_features in (False, True):
    keras.utils.set_random_seed(3)
    model = models.build_classifier(
      2, base_filters=4, depth=4, centre_features=centre_features
    )
    optimizer = keras.optimizers.Adam(1e-2)
    for _ in range(5):
      with tf.GradientTape() as tape:
        named = model(cubes[:32], training=True)['probabilities']
        loss = tf.reduce_mean(
          keras.losses.sparse_categorical_crossentropy(labels[:32], named)
        )
      variables = model.trainable_variables
      optimizer.apply(tape.gradient(loss, variables), variables)
    scores = model(cubes[32:], training=True)['probabilities'][:, 1]
    areas[centre_features] = sklearn_metrics.roc_auc_score(labels[32:], scores)
  assert areas[True] > 0.95 > areas[False]


def test_a_fraction_is_of_patients_and_nested(data_dir):
  data = built_data.open_data(data_dir, ('cube', 'label', 'scan_id'))

  def patients(fraction):
    selected = label_fraction.select(data, fraction, seed=3)
    dataset = input_pipeline.make_dataset(selected, 'train', 4, seed=1)
    found = [one for b in dataset for one in b['scan_id'].numpy().tolist()]
    assert len(found) == 24  # as long as an epoch of all
    counts = {one: found.count(one) for one in found}
    assert max(counts.values()) - min(counts.values()) <= 4
    return set(found)

  third, half = patients(1 / 3), patients(0.5)
  assert (len(third), len(half)) == (2, 3)
  assert third < half
  assert label_fraction.select(data, 1.0, seed=3) is data
  other = label_fraction.choose_patients([f'{n}' for n in range(50)], 0.2, 1)
  assert len(other) == 10
  assert other != label_fraction.choose_patients(
    [f'{n}' for n in range(50)], 0.2, 2
  )


def test_a_run_learns_from_a_fraction_of_the_labels(data_dir, tmp_path):
  _train(tmp_path, data_dir, task=_classification, epochs=1, label_fraction=0.5)
  _, description = checkpoints.load_model(str(tmp_path))
  assert description['examples'] == {'train': 12, 'validation': 10, 'test': 10}


def test_refuses_fractions(data_dir):
  data = built_data.open_data(data_dir, ('cube', 'label', 'scan_id'))
  for fraction in (0.0, 1.5):
    with pytest.raises(errors.UserError, match='label_fraction is'):
      label_fraction.select(data, fraction, seed=1)


def test_an_empty_class_is_named(tmp_path):
  features = tfds.features.FeaturesDict(
    {
      'cube': tiny_data.make_volume(np.int16),
      'label': tfds.features.ClassLabel(names=['empty', 'box']),
      'scan_id': tfds.features.Text(),
    }
  )
  arrays = {
    'cube': np.zeros((8, *_SHAPE), np.int16),
    'label': np.arange(8) // 4,
    'scan_id': [f'{one // 4}' for one in range(8)],
  }
  path = tiny_data.write_splits(
    tmp_path, 'one_class', {'train': arrays}, features, 1
  )
  data = built_data.open_data(path, ('cube', 'label'))
  with pytest.raises(errors.UserError, match="no example of class '"):
    label_fraction.select(data, 0.5, seed=1)


def test_frozen_layers_stay_bit_for_bit(data_dir, tmp_path):
  rule = functools.partial(freezing.Freezing, ('encoder',))
  settings = {'task': _classification, 'learning_rate': 1e-2}
  _train(tmp_path / 'a', data_dir, epochs=1, **settings)
  before, _ = checkpoints.load_model(str(tmp_path / 'a'))
  _train(
    tmp_path / 'b',
    data_dir,
    epochs=2,
    freezing=rule,
    start_from=str(tmp_path / 'a'),
    **settings,
  )
  after, _ = checkpoints.load_model(str(tmp_path / 'b'), 'latest')
  for old, new in zip(
    before.encoder.get_weights(), after.encoder.get_weights(), strict=True
  ):
    np.testing.assert_array_equal(old, new)
  assert np.any(
    before.cls_output.get_weights()[0] != after.cls_output.get_weights()[0]
  )


def test_statistics_of_pretraining_are_left_behind(data_dir, tmp_path):
  _train(tmp_path / 'a', data_dir, epochs=1, task=_classification)
  model, _ = checkpoints.load_model(str(tmp_path / 'a'))
  model.encoder.conv_blocks[0].batch_norm.moving_mean.assign([1000.0, 1000.0])
  model.save(tmp_path / 'a.keras')

  def moving_mean(workdir, **settings):
    _train(
      *(workdir, data_dir),
      epochs=1,
      task=_classification,
      start_from=str(tmp_path / 'a.keras'),
      **settings,
    )
    model, _ = checkpoints.load_model(str(workdir), 'latest')
    return model.encoder.conv_blocks[0].batch_norm.moving_mean.numpy()

  assert (moving_mean(tmp_path / 'b') > 500).all()
  found = moving_mean(tmp_path / 'c', batch_norm_momentum=0.1)
  assert (np.abs(found) < 10).all()


@pytest.mark.parametrize('momentum', [-0.1, 1.0])
def test_a_momentum_that_is_none_is_refused(data_dir, tmp_path, momentum):
  text = f'batch_norm_momentum is {momentum}, wanted 0 or more and less than 1'
  with pytest.raises(errors.UserError, match=text):
    _train(tmp_path / 'w', data_dir, batch_norm_momentum=momentum)
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('weight', [-0.1, float('nan'), float('inf')])
def test_a_decorrelation_that_is_no_weight_is_refused(
  data_dir, tmp_path, weight
):
  text = f'decorrelation_weight is {weight}, wanted 0 or more'
  with pytest.raises(errors.UserError, match=text):
    _train(tmp_path / 'w', data_dir, decorrelation_weight=weight)
  assert not (tmp_path / 'w').exists()


def test_layers_thaw_one_by_one_and_on_resuming(data_dir, tmp_path):
  def snapshot():
    model, _ = checkpoints.load_model(str(tmp_path / 'w'), 'latest')
    return [block.get_weights() for block in model.encoder.conv_blocks]

  settings = {
    'task': _classification,
    'freezing': functools.partial(freezing.Freezing, ('encoder',), 1),
  }
  snapshots = []
  for epochs in (1, 2, 3):
    _train(tmp_path / 'w', data_dir, epochs=epochs, **settings)
    snapshots.append(snapshot())
  for epoch, (old, new) in enumerate(itertools.pairwise(snapshots), start=2):
    moved = [
      any(np.any(a != b) for a, b in zip(one, other, strict=True))
      for one, other in zip(old, new, strict=True)
    ]
    assert moved == [n >= 4 - (epoch - 1) for n in range(4)]


def test_blocks_thaw_from_the_output_on():
  model = models.build_unet3d(base_filters=2, depth=3)
  model.build((None, *_SHAPE, 1))
  rule = freezing.Freezing(('encoder', 'decoder'), 1)
  blocks = [*model.decoder.levels[::-1], *model.encoder.conv_blocks[::-1]]
  for epoch in range(1, len(blocks) + 2):
    assert rule.apply(model, epoch)
    learning = [one.trainable for one in blocks]
    assert learning == [n < epoch - 1 for n in range(len(blocks))]


def test_refuses_to_freeze_what_is_not_there_and_all():
  model = models.build_classifier(2, **_SIZES)
  model.build((None, *_SHAPE, 1))
  with pytest.raises(errors.UserError, match=r"parts has \['decoder'\]"):
    freezing.Freezing(('decoder',)).apply(model, 1)
  with pytest.raises(errors.UserError, match='all of the network'):
    freezing.Freezing(('encoder', 'classifier')).apply(model, 1)
  with pytest.raises(errors.UserError, match='unfreeze_epochs is -1'):
    freezing.Freezing((), -1)


def test_inputs_in_pipeline_is_refused(data_dir, tmp_path):
  with pytest.raises(errors.UserError, match='changes cubes within the step'):
    _train(
      tmp_path / 'w', data_dir, task=_classification, inputs_in_pipeline=True
    )


@pytest.mark.parametrize(
  ('run', 'kind'),
  [
    ('finetune_classification', target_tasks.Classification),
    ('finetune_segmentation', target_tasks.Segmentation),
    ('linear_probe', target_tasks.Classification),
  ],
)
def test_gin_files_parse(run, kind):
  gin_files.parse([f'gin/runs/{run}.gin'], ['train.start_from = "W"'])
  try:
    settings = settings_lib.Settings()
    assert isinstance(settings.task(), kind)
    assert settings.start_from == 'W'
    model = models.build_classifier(2)
    model.build((None, 16, 16, 16, 1))
    if run == 'linear_probe':
      settings.freezing().apply(model, 50)
      assert len(model.trainable_variables) == 2
  finally:
    gin.clear_config()


@pytest.mark.parametrize('centre_features', [False, True])
def test_the_classifier_is_the_encoder_with_a_dense_layer(
  tmp_path, centre_features
):
  model = models.build_classifier(3, centre_features=centre_features, **_SIZES)
  cubes = tf.random.stateless_uniform((2, *_SHAPE, 1), (1, 2))
  outputs = model(cubes)
  bottleneck, skips = model.encoder(cubes)
  pooled = np.mean(bottleneck, axis=(1, 2, 3))
  np.testing.assert_allclose(outputs['embedding'], pooled, rtol=1e-5)
  features = [pooled]
  if centre_features:
    assert len(skips) == 1
    for level in (*skips, bottleneck):
      z, x, y = (side // 2 for side in level.shape[1:4])
      middle = np.asarray(level)[:, z - 1 : z + 1, x - 1 : x + 1, y - 1 : y + 1]
      features.append(middle.mean(axis=(1, 2, 3)))
  kernel, bias = model.cls_output.get_weights()
  logits = np.concatenate(features, axis=1) @ kernel + bias
  want = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  np.testing.assert_allclose(outputs['probabilities'], want, rtol=1e-5)
  path = str(tmp_path / 'model.keras')
  model.save(path)
  np.testing.assert_array_equal(
    keras.saving.load_model(path)(cubes)['probabilities'],
    outputs['probabilities'],
  )
