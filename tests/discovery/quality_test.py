"""Quality of words against NumPy, scikit-learn by hand and known anatomy."""

import dataclasses
import itertools
import json
import os

import numpy as np
import pytest

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.discovery import quality
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.discovery import vocabulary
from transvw_tf2.scans import bend
from transvw_tf2.scans import geometry


def _instance(word, rank, scan_id='a', resolution=0, split=schema.TRAIN, **box):
  box = {'origin': (0, 0, 0), 'size': (64, 64, 32)} | box
  return vocabulary.Instance(
    split=split,
    word=word,
    rank=rank,
    resolution=resolution,
    scan_id=scan_id,
    distance=0.0,
    **box,
  )


def test_cross_correlation_is_that_of_numpy():
  rng = np.random.default_rng(0)
  thumbnails = rng.normal(-700, 90, (7, 4, 3, 2)).astype(np.float32)
  np.testing.assert_allclose(
    quality.correlate(thumbnails),
    np.corrcoef(thumbnails.reshape(7, -1).astype(np.float64)),
    atol=1e-9,
  )


def test_cross_correlation_ignores_brightness_and_knows_flat_cubes():
  rng = np.random.default_rng(1)
  one = rng.normal(size=(4, 4, 2))
  found = quality.correlate(
    np.stack([one, 3 * one - 700, -one, np.full_like(one, -1000)])
  )
  np.testing.assert_allclose(
    found,
    [[1, 1, -1, 0], [1, 1, -1, 0], [-1, -1, 1, 0], [0, 0, 0, 0]],
    atol=1e-9,
  )


def test_thumbnails_are_means_of_blocks_and_air_is_counted():
  rng = np.random.default_rng(2)
  cube = rng.integers(-1000, 1000, schema.CUBE_SHAPE).astype(np.int16)
  thumbnail = quality.make_thumbnail(cube)
  assert (thumbnail.shape, thumbnail.dtype) == ((16, 16, 8), np.float32)
  block = cube[4:8, 60:64, 8:12].astype(float)
  assert thumbnail[1, 15, 2] == pytest.approx(block.mean(), abs=1e-3)
  cube[:] = 40
  cube[:16] = -951
  cube[16:32] = -949
  cube[63, 63, 31] = -950
  assert quality.air_share(cube) == pytest.approx(0.25 + 1 / cube.size)


def _by_hand(correlation, words):
  """Pairs and silhouettes, one by one."""
  within, between, silhouettes = {}, {}, {}
  for i, word in enumerate(words):
    groups = {}
    for j, other in enumerate(words):
      if i != j:
        groups.setdefault(other, []).append(correlation[i, j])
    mine = groups.pop(word, [])
    within.setdefault(word, []).extend(mine)
    between.setdefault(word, []).extend(itertools.chain(*groups.values()))
    if mine:
      a = 1 - np.mean(mine)
      b = min(1 - np.mean(one) for one in groups.values())
      silhouettes.setdefault(word, []).append((b - a) / max(a, b))
    else:
      silhouettes.setdefault(word, []).append(0.0)
  return within, between, silhouettes


def test_scores_of_words_are_those_counted_by_hand():
  rng = np.random.default_rng(3)
  words = [0, 0, 0, 2, 2, 5, 7, 7, 7, 7]
  parts = rng.normal(size=(8, 4, 4, 2))
  thumbnails = np.stack(
    [parts[word] + rng.normal(0, 0.7, (4, 4, 2)) for word in words]
  ).astype(np.float32)
  air = rng.uniform(size=len(words))
  errors_mm = {
    (schema.TRAIN, 0, 1): 3.0,
    (schema.VALIDATION, 0, 0): 6.0,
    (schema.TRAIN, 7, 1): 12.0,
  }
  found = quality.measure(words, thumbnails, air, errors_mm)
  correlation = np.corrcoef(thumbnails.reshape(len(words), -1))
  within, between, silhouettes = _by_hand(correlation, words)
  assert sorted(found.words) == [0, 2, 5, 7]
  for word, one in found.words.items():
    assert one.cubes == words.count(word)
    if word == 5:  # alone, so like no other of its word
      assert one.within is None
    else:
      assert one.within == pytest.approx(np.mean(within[word]), abs=1e-6)
    assert one.between == pytest.approx(np.mean(between[word]), abs=1e-6)
    assert one.silhouette == pytest.approx(np.mean(silhouettes[word]), abs=1e-6)
    assert one.air == pytest.approx(
      np.mean(air[np.array(words) == word]), abs=1e-6
    )
  assert [found.words[word].error_mm for word in (0, 2, 5, 7)] == [
    *(4.5, None, None, 12.0)
  ]
  overall = found.overall
  assert overall.cubes == 10
  assert overall.within == pytest.approx(
    np.mean([np.mean(within[word]) for word in (0, 2, 7)]), abs=1e-6
  )
  assert overall.error_mm == 7.0
  assert found.summary_lines()[1] == 'true error: 7.0 mm, mean of 3 cubes'


def test_good_words_score_better_than_shuffled_ones():
  rng = np.random.default_rng(4)
  words = np.repeat(np.arange(5), 6)
  parts = rng.normal(size=(5, 16, 16, 8))
  thumbnails = (parts[words] + rng.normal(0, 1, (30, 16, 16, 8))).astype('f4')
  good = quality.measure(words, thumbnails, np.zeros(30), {}).overall
  bad = quality.measure(
    rng.permutation(words), thumbnails, np.zeros(30), {}
  ).overall
  # Half of the variance is shared.
  assert good.within == pytest.approx(0.5, abs=0.05)
  assert good.between == pytest.approx(0.0, abs=0.05)
  assert good.silhouette > 0.3
  assert bad.within < 0.2 and bad.silhouette < 0.05
  assert good.error_mm is None


@pytest.mark.parametrize('words', [[0], [3, 3], [0, 1]])
def test_too_few_cubes_leave_scores_open(words):
  rng = np.random.default_rng(5)
  thumbnails = rng.normal(size=(len(words), 4, 4, 2)).astype(np.float32)
  found = quality.measure(words, thumbnails, [0.5] * len(words), {})
  assert found.overall.silhouette is None
  assert (found.overall.within is None) is (words != [3, 3])
  assert (found.overall.between is None) is (words != [0, 1])
  assert found.overall.air == 0.5
  assert len(found.summary_lines()) == 1
  assert 'unknown' in found.summary_lines()[0]


def test_measured_cubes_are_native_and_spread_evenly_over_words(monkeypatch):
  instances = [
    _instance(word, rank, resolution=resolution)
    for word in range(4)
    for rank in range(3 if word == 2 else 30)
    for resolution in range(3)
  ]
  chosen = quality.choose_measured(instances[::-1], seed=1)
  assert chosen == sorted(one for one in instances if one.resolution == 0)
  monkeypatch.setattr(quality, 'MOST_CUBES', 40)
  few = quality.choose_measured(instances, seed=1)
  assert [sum(one.word == word for one in few) for word in range(4)] == [
    *(10, 10, 3, 10)
  ]
  assert few == sorted(few) == quality.choose_measured(instances[::-1], seed=1)
  assert len(set(few)) == len(few)
  assert few != quality.choose_measured(instances, seed=2)
  # Two of a word at least, so of fewer words.
  monkeypatch.setattr(quality, 'MOST_CUBES', 5)
  fewer = quality.choose_measured(instances, seed=1)
  assert len(fewer) == 4
  assert len({one.word for one in fewer}) == 2


def _truth(spacing, origin, matrix=(1, 1, 1), offset=(0, 0, 0)):
  return bend.Truth(
    geometry.Geometry((200, 200, 100), spacing, origin),
    bend.Bend(
      corner=np.array(origin, float),
      spacing=np.array([500.0, 500.0, 500.0]),
      coefficients=np.zeros((4, 4, 4, 3)),
      matrix=np.diag(np.array(matrix, float)),
      offset=np.array(offset, float),
    ),
  )


def test_errors_are_distances_in_mm_of_the_template():
  truths = {
    'a': _truth((1.0, 1.0, 2.0), (0.0, 0.0, 0.0)),
    'b': _truth((0.5, 0.5, 1.0), (10.0, -4.0, 0.0), (2, 1, 1), (0, 3, 0)),
  }
  words = (vocabulary.Word(0, 'a', (10, 20, 30)),)
  instances = (
    _instance(0, 0, 'a', origin=(10, 20, 30)),
    _instance(0, 1, 'b', origin=(20, 30, 40), size=(21, 60, 11)),
    _instance(0, 1, 'b', resolution=1),
    _instance(0, 0, 'b', split=schema.VALIDATION, origin=(0, 0, 0)),
  )
  found = quality.find_errors(
    vocabulary.Vocabulary(settings_lib.Settings(), words, instances), truths
  )
  # The middle of the reference is voxel (41.5, 51.5, 45.5): mm the same in x
  # and y and twice in z.
  wanted = np.array([41.5, 51.5, 91.0])
  # Voxel (30, 59.5, 45) of b lies at (25, 25.75, 45) mm.
  one = np.array([50.0, 28.75, 45.0])
  # Voxel (31.5, 31.5, 15.5) lies at (25.75, 11.75, 15.5) mm.
  other = np.array([51.5, 14.75, 15.5])
  assert found == {
    (schema.TRAIN, 0, 1): pytest.approx(np.linalg.norm(one - wanted), abs=1e-3),
    (schema.VALIDATION, 0, 0): pytest.approx(
      np.linalg.norm(other - wanted), abs=1e-3
    ),
  }


def test_files_there_and_back(tmp_path):
  rng = np.random.default_rng(6)
  found = quality.measure(
    [0, 0, 1, 1, 4],
    rng.normal(size=(5, 4, 4, 2)).astype(np.float32),
    rng.uniform(size=5),
    {(schema.TRAIN, 1, 1): 3.25},
  )
  quality.write_quality(os.fspath(tmp_path), found)
  assert os.listdir(tmp_path) == ['quality.json']
  assert quality.read_quality(os.fspath(tmp_path)) == found
  contents = json.loads((tmp_path / 'quality.json').read_text())
  assert contents['words'][2]['word'] == 4
  assert contents['words'][2]['within'] is None
  assert contents['errors_mm'] == [
    {'split': 'train', 'word': 1, 'rank': 1, 'error_mm': 3.25}
  ]


@pytest.mark.parametrize('text', [None, '', '[]', '{"overall": 3}'])
def test_a_file_that_holds_no_quality(tmp_path, text):
  if text is not None:
    (tmp_path / 'quality.json').write_text(text)
  with pytest.raises(errors.UserError, match=r'quality\.json cannot be read'):
    quality.read_quality(os.fspath(tmp_path))


@pytest.mark.parametrize(
  ('key', 'value'),
  [('within', 'text'), ('within', [1]), ('cubes', {}), ('more', 1)],
)
def test_scores_that_are_no_numbers(tmp_path, key, value):
  scores = dataclasses.asdict(quality.Scores(3, 0.5, 0.1, 0.2, 0.3, None))
  contents = {'overall': scores | {key: value}, 'words': [], 'errors_mm': []}
  (tmp_path / 'quality.json').write_text(json.dumps(contents))
  with pytest.raises(errors.UserError, match=r'quality\.json cannot be read'):
    quality.read_quality(os.fspath(tmp_path))


def test_values_nested_without_end(tmp_path):
  (tmp_path / 'quality.json').write_text('[' * 100_000)
  with pytest.raises(errors.UserError, match=r'quality\.json cannot be read'):
    quality.read_quality(os.fspath(tmp_path))
