"""Missing, cut and foreign shards: one line that names the file."""

import glob
import json
import os
import shutil

import pytest
import tensorflow as tf

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2.training import built_data
from transvw_tf2.training import damaged_data
from transvw_tf2.training import input_pipeline

# As TFRecord lays out a record: length, checksum, content, checksum.
_LENGTH_BYTES, _CHECKSUM_BYTES = 8, 4


@pytest.fixture(name='folder')
def _folder(data_dir, tmp_path):
  shutil.copytree(data_dir, tmp_path / 'data')
  return str(tmp_path / 'data')


def _shard(folder, split='train', number=1):
  return sorted(glob.glob(f'{folder}/*{split}.tfrecord*'))[number]


def _ends_of_records(path):
  """Returns the offsets in bytes at which the records of a shard end."""
  with open(path, 'rb') as file:
    content = file.read()
  ends, end = [], 0
  while end < len(content):
    length = int.from_bytes(content[end : end + _LENGTH_BYTES], 'little')
    end += _LENGTH_BYTES + 2 * _CHECKSUM_BYTES + length
    ends.append(end)
  return ends


def _read_epoch(data, split='train', **settings):
  """Reads an epoch as a run does."""
  with damaged_data.explain(data, split):
    dataset = input_pipeline.make_dataset(
      data, split, 6, shuffle_buffer=8, **settings
    )
    return [batch['cube'].shape[0] for batch in dataset]


def _error(function, *arguments, **settings):
  """Returns the one line that a call fails with."""
  with pytest.raises(errors.UserError) as info:
    function(*arguments, **settings)
  message = str(info.value)
  assert '\n' not in message
  return message


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_a_missing_shard(folder, split):
  path = _shard(folder, split)
  os.remove(path)
  message = _error(built_data.open_data, folder)
  assert message.startswith(f'shard {path} is missing: copy all of {folder} ag')
  assert '`tfds build transvw_luna16`' in message


# Bytes after the end of the second record, or before that of the third.
@pytest.mark.parametrize('place', [12, 1000, -1000, -4, -1])
def test_a_shard_cut_within_a_record(folder, place):
  path = _shard(folder)
  ends = _ends_of_records(path)
  assert len(ends) == 9
  os.truncate(path, place + ends[2 if place < 0 else 1])
  message = _error(built_data.open_data, folder)
  assert message.startswith(
    f'shard {path} is damaged, only 2 of its 9 examples can be read: copy it'
  )


@pytest.mark.parametrize('left', [1, 11])
def test_a_shard_cut_within_the_length_of_a_record(folder, left):
  # TensorFlow takes that for the end.
  path = _shard(folder)
  os.truncate(path, _ends_of_records(path)[1] + left)
  message = _error(built_data.open_data, folder)
  assert message.startswith(f'shard {path} has 2 examples, wanted 9: copy it')


@pytest.mark.parametrize('records', [0, 8])
def test_a_shard_cut_between_records(folder, records):
  path = _shard(folder, 'train', 0)
  os.truncate(path, [0, *_ends_of_records(path)][records])
  message = _error(built_data.open_data, folder)
  assert message.startswith(f'shard {path} has {records} examples, wanted 9: c')


def test_a_shard_of_another_build(folder, tmp_path):
  # As many examples, and all of them sound, but longer.
  path = _shard(folder)
  records = list(tf.data.TFRecordDataset(path).as_numpy_iterator())
  with tf.io.TFRecordWriter(path) as writer:
    for record in records:
      example = tf.train.Example.FromString(record)
      example.features.feature['note'].bytes_list.value.append(b'more')
      writer.write(example.SerializeToString())
  message = _error(built_data.open_data, folder)
  size = sum(map(os.path.getsize, (_shard(folder, 'train', 0), path)))
  assert f'the train shards of data set {folder} have {size} bytes' in message
  assert 'of different builds, so build the data set anew with `tfds' in message


def test_data_of_unknown_size_are_opened(folder):
  # As older versions of TFDS leave them.
  path = f'{folder}/dataset_info.json'
  with open(path, encoding='utf-8') as file:
    info = json.load(file)
  for split in info['splits']:
    split['numBytes'] = '0'
  with open(path, 'w', encoding='utf-8') as file:
    json.dump(info, file)
  assert sum(_read_epoch(built_data.open_data(folder))) == 18
  # A missing shard is found all the same.
  os.remove(_shard(folder))
  assert 'is missing' in _error(built_data.open_data, folder)


def test_shards_of_another_format(folder):
  path = f'{folder}/dataset_info.json'
  with open(path, encoding='utf-8') as file:
    info = json.load(file)
  info['fileFormat'] = 'array_record'
  with open(path, 'w', encoding='utf-8') as file:
    json.dump(info, file)
  message = _error(built_data.open_data, folder)
  assert message.startswith(
    f'data set {folder} has array_record files, wanted tfrecord: build it anew'
  )


def _remove(path):
  os.remove(path)
  return f'shard {path} is missing: copy all of'


def _cut_within_a_record(path):
  os.truncate(path, _ends_of_records(path)[2] - 7)
  return f'shard {path} is damaged, only 2 of its '


def _cut_between_records(path):
  os.truncate(path, _ends_of_records(path)[0])
  return f'shard {path} has 1 examples, wanted '


def _flip_a_bit(path):
  with open(path, 'r+b') as file:
    file.seek(_ends_of_records(path)[0] + 2000)
    old = file.read(1)
    file.seek(-1, os.SEEK_CUR)
    file.write(bytes([old[0] ^ 4]))
  return f'shard {path} is damaged, only 1 of its '


def _replace_a_record(path, change):
  records = list(tf.data.TFRecordDataset(path).as_numpy_iterator())
  records[1] = change(records[1])
  with tf.io.TFRecordWriter(path) as writer:
    for record in records:
      writer.write(record)
  return f'shard {path} holds something else than examples with cube and word,'


def _put_no_example(path):
  return _replace_a_record(path, lambda record: b'\xff' * len(record))


def _put_no_word(path):
  def change(record):
    example = tf.train.Example.FromString(record)
    del example.features.feature['word']
    return example.SerializeToString()

  return _replace_a_record(path, change)


def _put_a_smaller_cube(path):
  def change(record):
    example = tf.train.Example.FromString(record)
    values = example.features.feature['cube'].bytes_list.value
    values[0] = values[0][:-2]
    return example.SerializeToString()

  return _replace_a_record(path, change)


@pytest.mark.parametrize('split', ['train', 'validation'])
@pytest.mark.parametrize(
  'damage',
  [
    *(_remove, _cut_within_a_record, _cut_between_records, _flip_a_bit),
    *(_put_no_example, _put_no_word, _put_a_smaller_cube),
  ],
)
def test_damage_done_during_a_run(folder, damage, split):
  data = built_data.open_data(folder)
  assert sum(_read_epoch(data, split)) in (12, 18)
  wanted = damage(_shard(folder, split))
  message = _error(_read_epoch, data, split)
  assert message.startswith(wanted)
  assert 'anew with `tfds build transvw_luna16`' in message


def test_damage_found_when_the_data_are_read_into_memory(folder):
  data = built_data.open_data(folder)
  wanted = _cut_between_records(_shard(folder))
  # Not by the caller alone.
  message = _error(
    input_pipeline.make_dataset, data, 'train', 4, cache='memory'
  )
  assert message.startswith(wanted)
  assert not data.records


def test_damage_found_when_volumes_are_read(folder):
  data = built_data.open_data(folder)
  wanted = _flip_a_bit(_shard(folder))
  message = _error(lambda: list(input_pipeline.read_volumes(data, 'train')))
  assert message.startswith(wanted)


def test_damage_found_by_a_distributed_run(folder):
  strategy = tf.distribute.MirroredStrategy(['cpu:0'])
  data = built_data.open_data(folder)

  def make(context):
    return input_pipeline.make_dataset(data, 'train', 4, input_context=context)

  dataset = strategy.distribute_datasets_from_function(make)
  wanted = _cut_within_a_record(_shard(folder))

  @tf.function
  def add_up(batches):
    total = 0.0
    for batch in batches:
      total += strategy.run(
        lambda batch: tf.reduce_sum(batch['cube']), (batch,)
      )
    return total

  def read():
    with damaged_data.explain(data, 'train'):
      add_up(dataset)

  assert _error(read).startswith(wanted)


def test_a_shard_that_may_not_be_read(folder, monkeypatch):
  data = built_data.open_data(folder)
  path = _shard(folder)
  read = tf.data.TFRecordDataset

  # Root, as whom tests may run, may read all.
  def refuse(name, *args, **kwargs):
    if name == path:
      raise tf.errors.PermissionDeniedError(None, None, f'{path}; denied')
    return read(name, *args, **kwargs)

  def fail():
    with damaged_data.explain(data, 'train'):
      refuse(path)

  monkeypatch.setattr(tf.data, 'TFRecordDataset', refuse)
  assert _error(fail).startswith(f'shard {path} may not be read by this user')


def test_other_errors_stay_as_they_are(data_dir):
  data = built_data.open_data(data_dir)
  with (
    pytest.raises(tf.errors.InvalidArgumentError, match='NaN'),
    damaged_data.explain(data, 'train'),
  ):
    tf.debugging.check_numerics(float('nan'), 'a loss')
  with (
    pytest.raises(OSError, match='full'),
    damaged_data.explain(data, 'train'),
  ):
    raise OSError('disk full')


def test_thumbnails_name_their_own_builder(tmp_path):
  cubes, _ = tiny_data.make_cubes(4, seed=1)
  folder = tiny_data.write_thumbnails(tmp_path, {'train': cubes})
  os.remove(_shard(folder))
  message = _error(built_data.open_data, folder, built_data.THUMBNAILS)
  assert message.endswith('anew with `python -m beam_jobs.index_scans`')
