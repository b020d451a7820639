"""Every command of the README is run: here, or by the tests it names."""

import csv
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.convert import published_files
from tests.training import tiny_data
from transvw_tf2.scans import luna16
from transvw_tf2.scans import phantom

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# These two run in tests/tools/quickstart_test.py, and as the tests themselves.
_ELSEWHERE = ('bash tools/quickstart.sh', 'bash tools/test.sh')


def _text():
  with open(os.path.join(_ROOT, 'README.md'), encoding='utf-8') as file:
    return file.read()


def _blocks(language):
  return re.findall(rf'```{language}\n(.*?)```', _text(), re.DOTALL)


def test_all_blocks_are_known():
  languages = set(re.findall(r'^```(\w*)\n', _text(), re.MULTILINE))
  assert languages == {'', 'bash', 'python', 'bibtex'}
  first, *others = _blocks('bash')
  assert all(line.startswith(_ELSEWHERE) for line in first.splitlines())
  assert len(others) >= 6


def _label(scans, folder):
  """Writes labels.csv for the candidates of scans."""
  folder.mkdir()
  paths = {one.scan_id: one.path for one in luna16.find_scans(scans)}
  with open(folder / 'labels.csv', 'w', newline='', encoding='utf-8') as file:
    table = csv.writer(file)
    table.writerow(['scan', 'x', 'y', 'z', 'label'])
    for one in luna16.read_candidates(scans):
      label = ('vessel', 'nodule')[one.label]
      table.writerow([paths[one.scan_id], *one.centre, label])


@pytest.mark.long
def test_the_commands_work_one_after_another(tmp_path):
  scans = tmp_path / 'LUNA16'
  scans.mkdir()
  # Large enough for a global batch of 32, small enough for a minute.
  phantom.write_luna16(str(scans), 17, (96, 96, 64), seed=3)
  words = {
    name: str(tmp_path / name)
    for name in (
      *('LUNA16', 'DATA', 'OTHER_DATA', 'VOCABULARY'),
      *('WORKDIR', 'OTHER_WORKDIR', 'ENCODER', 'SCAN.npz'),
      *('WORDS', 'RESTORATION', 'WORDS_THEN_BOTH'),
      *('PATIENTS', 'WORDS_OF_PATIENTS', 'LEARNT'),
      *('LUNG_VOCABULARY', 'ATLAS.html', 'INDEX', 'AUTOENCODER'),
      'CLUSTER_VOCABULARY',
      *('TransVW_chest_ct.h5', 'OFFICIAL.keras', 'OURS.h5'),
      'OFFICIAL_ENCODER',
      *('TARGETS', 'CANDIDATES', 'NODULES', 'REPORT'),
      *('MY_SCANS', 'MY_DATA', 'MY_REPORT', 'MY_RUN', 'MY_PROBE', 'MY_MODEL'),
      *('AUTOENCODER_MODEL', 'PAPER_VOCABULARY', 'NPY', 'RELEASED_DATA'),
      *('EMBEDDINGS', 'SIMILAR.png', 'PROJECTOR'),
      *('KNOWN_SCANS', 'KNOWN', 'PARTS_ENCODER', 'PAIRS.csv', 'STUDY'),
    )
  }
  first = luna16.find_scans(str(scans))[0]
  words |= {'SCAN.mhd': first.path, 'SCAN_ID': first.scan_id}
  published_files.write_h5(
    words['TransVW_chest_ct.h5'], published_files.draw('y_net')
  )
  _label(words['LUNA16'], tmp_path / 'MY_SCANS')
  tiny = ' '.join(
    f"--gin_param='{binding}'"
    for binding in (
      *tiny_data.GIN,
      'word_classifier.base_filters = 2',
      'word_classifier.depth = 3',
      'unet3d.base_filters = 2',
      'unet3d.depth = 3',
      'classifier.base_filters = 2',
      'classifier.depth = 3',
      'train.batch_size = 4',
      'train.epochs = 1',
    )
  )
  environment = {
    **os.environ,
    'PATH': os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH'],
  }
  for block in _blocks('bash')[1:]:
    command = re.sub(
      r'(?<![\w/])(' + '|'.join(map(re.escape, words)) + r')(?!\w)',
      lambda found: words[found[0]],
      block,
    )
    command = command.replace('transvw_tf2.train', f'transvw_tf2.train {tiny}')
    command = command.replace('transfer_study.py', f'transfer_study.py {tiny}')
    command = command.replace('gpu:0,1', 'cpu:2')
    done = subprocess.run(
      ['bash', '-euc', command],
      capture_output=True,
      text=True,
      cwd=_ROOT,
      env=environment,
      check=False,
    )
    assert done.returncode == 0, f'{block}\n{done.stderr[-2000:]}'
  with np.load(words['SCAN.npz']) as arrays:
    assert set(arrays) == {'embeddings', 'places', 'mean'}

  namespace = {'cubes': np.zeros((1, 64, 64, 32, 1), np.float32)}
  load_cubes, load_weights, classify = _blocks('python')
  path = words['TransVW_chest_ct.h5']
  exec(load_weights.replace("'TransVW_chest_ct.h5'", repr(path)), namespace)
  assert namespace['embeddings'].shape == (1, 32)
  for name in ('SCAN.mhd', 'MY_MODEL'):
    classify = classify.replace(f"'{name}'", repr(words[name]))
  exec(classify, namespace)
  assert namespace['scores'].shape == (1, 2)
  exec(load_cubes.replace("'DATA'", repr(words['DATA'])), namespace)
  assert isinstance(next(iter(tfds.as_numpy(namespace['cubes']))), dict)
