"""Finds a real chest CT for the tests that want one."""

import os

import pytest

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_VARIABLE = 'TRANSVW_REAL_CT'


def path(name: str = 'lung1_image.nrrd') -> str:
  """Returns the path of a real scan, or skips the test that asks for it.

  The folder is ../shared/real_ct beside this project, or what TRANSVW_REAL_CT
  says.
  """
  folder = os.environ.get(_VARIABLE) or os.path.join(
    os.path.dirname(_ROOT), 'shared', 'real_ct'
  )
  found = os.path.join(folder, name)
  if not os.path.isfile(found):
    pytest.skip(f'no real CT {found}; name its folder in {_VARIABLE}')
  return found
