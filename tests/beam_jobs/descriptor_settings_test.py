"""Which settings of descriptors fit together."""

import subprocess
import sys

import pytest

from beam_jobs import descriptor_settings
from transvw_tf2 import errors


def test_the_default_needs_nothing():
  found = descriptor_settings.DescriptorSettings()
  assert found.descriptor == 'pca'
  found.check_model()


@pytest.mark.parametrize(
  ('settings', 'text'),
  [
    ({'descriptor': 'vae'}, "one of pca, autoencoder, got 'vae'"),
    ({'descriptor': 'autoencoder'}, 'needs descriptor_model'),
    ({'descriptor_model': 'model'}, 'pca takes no model'),
    ({'descriptors': 3}, 'descriptors must be a path, got 3'),
    ({'descriptors': ''}, "descriptors must be a path, got ''"),
    (
      {'descriptors': 'a.npz', 'descriptor': 'autoencoder'},
      'descriptor and descriptor_model would be passed over',
    ),
    (
      {'descriptors': 'a.npz', 'descriptor_model': 'model'},
      'descriptor and descriptor_model would be passed over',
    ),
  ],
)
def test_what_does_not_fit_together_is_one_line(settings, text):
  with pytest.raises(errors.UserError, match=text):
    descriptor_settings.DescriptorSettings(**settings)


def test_a_missing_model_is_one_line(tmp_path):
  found = descriptor_settings.DescriptorSettings(
    descriptor='autoencoder', descriptor_model=str(tmp_path / 'gone')
  )
  with pytest.raises(errors.UserError, match=r'gone.* is not a folder'):
    found.check_model()


def test_workers_that_need_no_tensorflow_get_none():
  """It takes hundreds of MB in each of them."""
  code = (
    'import sys\n'
    'from beam_jobs import descriptor_file, descriptor_settings\n'
    'descriptor_settings.DescriptorSettings().check_model()\n'
    "sys.exit('tensorflow' in sys.modules)"
  )
  assert (
    subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
  )
