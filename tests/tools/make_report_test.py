"""The report of a run, on a tiny one."""

import os

from absl.testing import flagsaver
import gin
from matplotlib import figure
from PIL import Image

from tests.training import tiny_data
from transvw_tf2.training import devices
from transvw_tf2.training import gin_files
from transvw_tf2.training import loop
from transvw_tf2.training import settings

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)


def test_it_draws_restoration_and_curves(
  tmp_path, import_main, capsys, monkeypatch
):
  data_dir = tiny_data.write(tmp_path / 'data')
  with open(
    os.path.join(data_dir, 'rejected.csv'), 'w', encoding='utf-8'
  ) as file:
    file.write('scan,reason,detail\na,no_file,gone\n')
  workdir = str(tmp_path / 'run')
  gin_files.parse(
    [os.path.join(_ROOT, 'gin/runs/quickstart.gin')],
    [
      *tiny_data.GIN,
      'train.batch_size = 4',
      'train.epochs = 1',
      f'train.data_dir = {data_dir!r}',
    ],
    forget=True,
  )
  try:
    loop.train(workdir, devices.make_strategy('cpu'), settings.Settings())
    gin.clear_config()  # the report is a program of its own
    module = import_main('tools.make_report')
    # The tiny data has no ranks.
    monkeypatch.setattr(module, 'draw_words', lambda *_: figure.Figure())
    output = str(tmp_path / 'report')
    with flagsaver.flagsaver(data=data_dir, workdir=workdir, output=output):
      module.main([])
  finally:
    gin.clear_config()
  assert sorted(os.listdir(output)) == ['curves.png', 'slices.png', 'words.png']
  for name in os.listdir(output):
    with Image.open(os.path.join(output, name)) as picture:
      assert min(picture.size) > 100
  printed = capsys.readouterr().out
  assert 'words: 3, cubes: 25' in printed
  assert 'rejected scans: 1' in printed
  assert 'validation loss: ' in printed
