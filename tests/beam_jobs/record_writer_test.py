"""Records do not depend on the order of their features."""

import tensorflow as tf
import tensorflow_datasets as tfds

from beam_jobs import record_writer


def _field(number: int, data: bytes) -> bytes:
  """Encodes a length-delimited protobuf field."""
  assert len(data) < 128
  return bytes([number << 3 | 2, len(data)]) + data


def _record(names) -> bytes:
  """Serialises a tf.train.Example with its features in the order given."""
  features = b''
  for name in names:
    value = _field(1, _field(1, f'value of {name}'.encode()))  # a bytes_list
    features += _field(1, _field(1, name.encode()) + _field(2, value))
  return _field(1, features)


def test_records_are_sorted_by_feature_name(tmp_path):
  names = ['word', 'cube', 'rank']
  forth, back = _record(names), _record(names[::-1])
  assert forth != back
  path = str(tmp_path / 'records')
  writer = record_writer.DeterministicWriter(
    tfds.core.file_adapters.FileFormat.TFRECORD
  )
  writer.write(path, [(1, forth), (2, back)])
  first, second = tf.data.TFRecordDataset(path).as_numpy_iterator()
  assert first == second == _record(sorted(names))
  example = tf.train.Example.FromString(first)
  assert example.features.feature['rank'].bytes_list.value == [b'value of rank']
