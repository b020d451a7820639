"""The report of a run, on a tiny one."""

import functools
import os

from absl.testing import flagsaver
import gin
from matplotlib import figure
from PIL import Image
import pytest

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2 import models
from transvw_tf2.training import devices
from transvw_tf2.training import gin_files
from transvw_tf2.training import loop
from transvw_tf2.training import settings
from transvw_tf2.training import tasks

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
    restoration = tmp_path / 'restoration'
    tiny_data.train(
      restoration,
      devices.make_strategy('cpu'),
      data_dir,
      epochs=1,
      task=lambda: tasks.Restore(
        functools.partial(models.build_unet3d, base_filters=1, depth=2)
      ),
    )
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
  # What it cannot draw, before all work.
  (tmp_path / 'file').write_text('')
  for flags, line in (
    ({'output': str(tmp_path / 'file')}, 'file is no folder'),
    (
      {'workdir': str(restoration)},
      'is of the task Restore, wanted a run',
    ),
  ):
    flags = {'data': data_dir, 'workdir': workdir, 'output': output} | flags
    with (
      flagsaver.flagsaver(**flags),
      pytest.raises(errors.UserError, match=line),
    ):
      module.main([])
  printed = capsys.readouterr().out
  assert 'words: 3, cubes: 25' in printed
  assert 'rejected scans: 1' in printed
  assert 'validation loss: ' in printed
