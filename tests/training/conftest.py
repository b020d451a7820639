"""The tiny data set, written once, and one replica to train on."""

import pytest
import tensorflow as tf

from tests.training import tiny_data


@pytest.fixture(name='data_dir', scope='session')
def _data_dir(tmp_path_factory):
  return tiny_data.write(tmp_path_factory.mktemp('tiny_data'))


@pytest.fixture(name='strategy', scope='module')
def _strategy():
  return tf.distribute.MirroredStrategy(['/cpu:0'])
