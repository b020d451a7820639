"""The tiny data set, written once."""

import pytest

from tests.training import tiny_data


@pytest.fixture(name='data_dir', scope='session')
def _data_dir(tmp_path_factory):
  return tiny_data.write(tmp_path_factory.mktemp('tiny_data'))
