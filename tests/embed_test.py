"""`python -m transvw_tf2.embed` from the outside."""

import os
import subprocess
import sys

import numpy as np

from transvw_tf2.models import unet3d
from transvw_tf2.scans import geometry
from transvw_tf2.scans import reader
from transvw_tf2.serving import export

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _run(**named):
  arguments = [f'--{name}={value}' for name, value in named.items()]
  return subprocess.run(
    [sys.executable, '-m', 'transvw_tf2.embed', *arguments],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    check=False,
  )


def test_embeds_a_scan(tmp_path):
  model = unet3d.UNet3D(base_filters=1, depth=2)
  export.export_encoder(
    model, str(tmp_path / 'model'), {}, cube_shape=(4, 4, 4)
  )
  size = (10, 9, 8)
  hu = np.random.default_rng(0).integers(-1000, 900, size).astype(np.int16)
  scan = str(tmp_path / 'scan.mhd')
  reader.write_scan(scan, hu, geometry.Geometry(size))
  output = str(tmp_path / 'scan.npz')
  done = _run(
    model=tmp_path / 'model', scan=scan, output=output, stride='4,4,2'
  )
  assert done.returncode == 0, done.stderr
  assert '27 cubes' in done.stdout
  with np.load(output) as arrays:
    assert arrays['embeddings'].shape == (27, 4)

  # A stride that an unset variable left empty is not the default.
  done = _run(model=tmp_path / 'model', scan=scan, output=output, stride='')
  assert done.returncode == 1
  assert 'stride' in done.stderr.strip().splitlines()[-1]

  # The same process budget: one more run, for the error.
  done = _run(model=tmp_path / 'model', scan=scan + '.gz', output=output)
  assert done.returncode == 1
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith('error: ')
  assert 'scan.mhd.gz' in last
  assert 'Traceback' not in done.stderr
