"""The page of words, read by a parser as a browser would."""

import base64
import html.parser
import io
import os
import re

from absl.testing import flagsaver
from apache_beam.options import pipeline_options
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from beam_jobs import transvw_luna16
from tests.beam_jobs import tiny_scans
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.discovery import quality as quality_lib
from transvw_tf2.discovery import vocabulary as vocabulary_lib


class _Page(html.parser.HTMLParser):
  """Collects rows of (tag, attributes, text) of cells and headings."""

  def __init__(self, text):
    super().__init__()
    self.rows, self.scripts, self.links, self.heads = [], [], [], []
    self._open = []
    self.feed(text)
    self.close()
    assert self._open == []

  def handle_starttag(self, tag, attrs):
    attributes = dict(attrs)
    self.links += [
      attributes[key] for key in ('src', 'href') if key in attributes
    ]
    if tag == 'tr':
      self.rows.append([])
    if tag in ('td', 'th'):
      self.rows[-1].append({'tag': tag, 'text': '', **attributes})
    if tag == 'img':
      self.rows[-1][-1]['image'] = attributes
    if tag not in ('img', 'meta'):
      self._open.append(tag)

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if self._open and self._open[-1] == 'script':
      self.scripts.append(data)
    if 'td' in self._open or 'th' in self._open:
      self.rows[-1][-1]['text'] += data


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A data set of 3 words in 4 training and 2 validation patients."""
  scans = tiny_scans.write_luna16(tmp_path_factory.mktemp('scans'))
  builder = transvw_luna16.Builder(
    data_dir=os.fspath(tmp_path_factory.mktemp('data')),
    config=transvw_luna16.Builder.builder_config_cls(
      name='tiny', words=3, xy_border=4, z_border=4, min_distance=1.0
    ),
  )
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir=scans,
      beam_options=pipeline_options.PipelineOptions(['--runner=FnApiRunner']),
    )
  )
  return os.fspath(builder.data_path)


@pytest.fixture
def make(import_main, data, tmp_path):
  module = import_main('tools.word_atlas')

  def run(**flags):
    output = os.fspath(tmp_path / 'atlas.html')
    with flagsaver.flagsaver(**{'data': data, 'output': output} | flags):
      module.main([])
    with open(output, encoding='utf-8') as file:
      return _Page(file.read())

  return run


def _image(cell):
  kind, _, text = cell['image']['src'].partition(',')
  assert kind == 'data:image/jpeg;base64'
  return np.asarray(
    Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
  )


def test_a_row_per_word_with_its_patients_and_scores(make, data, tmp_path):
  page = make(patients=3, validation_patients=1)
  assert os.listdir(tmp_path) == ['atlas.html']
  heads, *rows = page.rows
  columns = ['word', 'within', 'between', 'silhouette', 'air', 'error_mm']
  assert [one.get('data-column') for one in heads[:6]] == columns
  assert [one['text'] for one in heads[6:]] == [
    f'patient {number}' for number in (1, 2, 3, 4)
  ]
  found = quality_lib.read_quality(data)
  assert len(rows) == 3
  references = {
    one.word: one.scan_id for one in vocabulary_lib.read_vocabulary(data).words
  }
  for word, row in enumerate(rows):
    assert [one.get('data-column') for one in row[:6]] == columns
    keys = [one['data-sort'] for one in row[:6]]
    scores = found.words[word]
    assert [float(key) for key in keys[:5]] == [
      *(word, scores.within, scores.between, scores.silhouette, scores.air)
    ]
    assert row[1]['text'] == f'{scores.within:.3f}'
    # The anatomy of these scans is not known.
    assert (keys[5], row[5]['text']) == ('', '\N{EN DASH}')
    cells = row[6:]
    assert len(cells) == 4
    assert cells[0]['text'] == 'reference'
    assert cells[0]['image']['title'].startswith(f'{references[word]}, voxel ')
    assert all(re.match(r'ncc -?\d\.\d\d', one['text']) for one in cells[1:])
    assert cells[3]['text'].endswith(', validation')
    assert {_image(one).shape for one in cells} == {(64, 196)}


def test_nothing_comes_from_the_network(make):
  page = make()
  assert page.links and all(link.startswith('data:') for link in page.links)
  assert len(page.scripts) == 1
  assert not re.search(r'https?:|//\w|fetch|import', page.scripts[0])


def test_true_errors_are_shown_where_they_are_known(make, data):
  path = os.path.join(data, quality_lib.QUALITY_FILE)
  with open(path, 'rb') as file:
    before = file.read()
  found = quality_lib.measure(
    [0, 0, 1, 1],
    np.random.default_rng(0).normal(size=(4, 2, 2, 2)).astype(np.float32),
    [0.0] * 4,
    {(schema.TRAIN, 0, 1): 4.25, (schema.VALIDATION, 1, 0): 17.0},
  )
  try:
    quality_lib.write_quality(data, found)
    rows = make(patients=2, validation_patients=1).rows[1:]
  finally:
    with open(path, 'wb') as file:
      file.write(before)
  assert [row[5]['data-sort'] for row in rows] == ['4.25', '17.0', '']
  assert rows[0][5]['text'] == '4.2'
  assert rows[0][7]['text'].endswith(', 4.2 mm')
  assert rows[1][8]['text'].endswith(', 17.0 mm, validation')
  # A word that was not measured is shown all the same.
  assert [one['data-sort'] for one in rows[2][:3]] == ['2', '', '']


def test_without_quality_words_are_shown(make, data, tmp_path):
  copy = tmp_path / 'copy'
  copy.mkdir()
  for name in os.listdir(data):
    if name != quality_lib.QUALITY_FILE:
      os.symlink(os.path.join(data, name), copy / name)
  rows = make(data=os.fspath(copy)).rows[1:]
  assert [row[0]['text'] for row in rows] == ['0000', '0001', '0002']
  assert [row[1]['data-sort'] for row in rows] == ['', '', '']
  assert len(rows[0]) == 6 + 4 + 1


def test_planes_are_the_middle_ones_in_true_proportions(import_main):
  module = import_main('tools.word_atlas')
  x, y, z = np.meshgrid(*map(np.arange, schema.CUBE_SHAPE), indexing='ij')
  cube = (10 * x + y - 1000 + 5 * z).astype(np.int16)
  # Twice as long in x and y as in z: planes of 64x64, 64x32 and 64x32.
  picture = module.draw_planes(cube, (80.0, 80.0, 40.0))
  assert (picture.shape, picture.dtype) == ((64, 196), np.uint8)

  def grey(hu):
    return np.rint((np.clip(hu, -1000, 400) + 1000.0) * 255 / 1400)

  np.testing.assert_array_equal(picture[:, :64], grey(cube[:, :, 16].T))
  np.testing.assert_array_equal(
    picture[16:48, 66:130], grey(cube[:, 32, ::-1].T)
  )
  np.testing.assert_array_equal(
    picture[16:48, 132:196], grey(cube[32, :, ::-1].T)
  )
  # Longer in z than in plane: narrow planes.
  tall = module.draw_planes(cube, (40.0, 40.0, 80.0))
  margin = np.unique(tall[:, 66 : 66 + 16])
  assert len(margin) == 1 and margin[0] not in (0, 255)
  assert len(np.unique(tall[:, 66 + 16 : 66 + 48])) > 10


def test_wrong_input_is_named(make, data, tmp_path):
  with pytest.raises(errors.UserError, match=r'gone. does not exist'):
    make(data=os.fspath(tmp_path / 'gone'))
  for output in (tmp_path / 'gone' / 'atlas.html', tmp_path):
    # Before the data is looked at, which takes its time.
    with pytest.raises(errors.UserError, match=r'cannot be written: wanted a'):
      make(data='gone', output=os.fspath(output))
  assert os.listdir(tmp_path) == []
