"""A served model without its server; where it can be, it is a stand-in."""

import dataclasses
import math
import types

import numpy as np
import pytest
import tensorflow as tf

from tests.serving import serve_process
from transvw_tf2 import errors

pytest.importorskip('kserve', reason=serve_process.SKIPPED)
from transvw_tf2.serving.server import api_keys
from transvw_tf2.serving.server import infer_v2
from transvw_tf2.serving.server import request_errors
from transvw_tf2.serving.server import rest_v1
from transvw_tf2.serving.server import served_model
from transvw_tf2.serving.server import settings


@pytest.fixture(name='load')
def _load(tmp_path, monkeypatch):
  function = types.SimpleNamespace(
    structured_input_signature=(
      (),
      {'bytes': tf.TensorSpec((None,), tf.string)},
    ),
    structured_outputs={'embedding': tf.TensorSpec((None, 2))},
  )
  loaded = types.SimpleNamespace(signatures={'embed_bytes': function})
  monkeypatch.setattr(tf.saved_model, 'load', lambda _: loaded)
  (tmp_path / 'saved_model.pb').touch()

  def load(text):
    (tmp_path / 'transvw_model.json').write_text(text)
    return served_model.ServedModel(str(tmp_path))

  return load


def test_the_shape_decides_the_length_of_a_volume(load):
  model = load('{"cube_shape": [4, 3, 2]}')
  tensor = model.signatures['embed_bytes'].inputs['bytes']
  assert tensor.item_bytes == 2 * 4 * 3 * 2
  model = load('{"words": ["a"]}')
  assert model.signatures['embed_bytes'].inputs['bytes'].item_bytes is None


@pytest.mark.parametrize(
  'text',
  [
    *('[]', '3', '"text"', 'null', '[' * 100_000, '{"cube_shape": 3.5}'),
    *('{"cube_shape": "text"}', '{"cube_shape": [4, 3]}'),
    *('{"cube_shape": [4, 3, 0]}', '{"cube_shape": [4, 3, "2"]}'),
    *('{"cube_shape": [[4], 3, 2]}', '{"thumbnail_shape": [1, 2, -3]}'),
    '{"cube_shape": [4, 3, Infinity]}',
  ],
)
def test_other_values_are_refused(load, text):
  with pytest.raises(
    errors.UserError, match=r'transvw_model\.json .* export the model again'
  ):
    load(text)


def test_a_length_of_more_digits_than_python_takes():
  with pytest.raises(request_errors.RequestError, match='Content-Length is'):
    infer_v2.from_bytes(b'{}', '9' * 5000, 'transvw')


def test_items_of_different_shapes_fail_no_neighbour(tmp_path):
  module = tf.Module()
  module.total = tf.function(
    lambda a: {'total': tf.reduce_sum(a, axis=1)},
    input_signature=[tf.TensorSpec((None, None), tf.float32, 'a')],
  )
  tf.saved_model.save(module, str(tmp_path), {'total': module.total})
  model = served_model.ServedModel(str(tmp_path))
  items = [{'a': np.ones(size, np.float32)} for size in (2, 3)]
  assert [one['total'] for one in model.run('total', items)] == [2, 3]


@pytest.mark.parametrize(
  ('dtype', 'name'),
  [
    *((tf.float32, 'DT_FLOAT'), (tf.float64, 'DT_DOUBLE')),
    *((tf.float16, 'DT_HALF'), (tf.int16, 'DT_INT16')),
    *((tf.string, 'DT_STRING'), (tf.bfloat16, 'DT_BFLOAT16')),
  ],
)
def test_metadata_names_types_as_tensorflow_does(load, dtype, name):
  model = load('{}')
  tensor = model.signatures['embed_bytes'].outputs['embedding']
  model.signatures['embed_bytes'].outputs['embedding'] = dataclasses.replace(
    tensor, tf_dtype=dtype
  )
  described = rest_v1.metadata('toy', model)['metadata']['signature_def']
  outputs = described['signature_def']['embed_bytes']['outputs']
  assert outputs['embedding']['dtype'] == name


def test_a_key_from_a_file_with_a_line_break_fits():
  headers = {'authorization': 'Bearer secret'}
  assert api_keys.is_valid(headers, 'secret\n')
  assert not api_keys.is_valid(headers, 'other\n')


@pytest.mark.parametrize(
  ('given', 'line'),
  [
    ({'grpc_port': 70000}, 'grpc_port is 70000, .* and at most 65535'),
    ({'max_request_mb': 2048}, 'is 2048, wanted at most 2047 with gRPC'),
    ({'grace_s': math.inf}, 'grace_s is inf, wanted at least 0 and at most'),
    ({'timeout_s': math.nan}, 'timeout_s is nan, wanted at least'),
    ({'name': 'a/b'}, "name is 'a/b', wanted letters"),
  ],
)
def test_settings_that_no_server_can_have(given, line):
  with pytest.raises(errors.UserError, match=line):
    settings.Settings(**given)


def test_limits_of_grpc_are_not_of_rest():
  settings.Settings(max_request_mb=4096, grpc=False, timeout_s=math.inf)
