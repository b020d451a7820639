"""What a run came to, in one file: WORKDIR/summary.json."""

from collections.abc import Mapping
from collections.abc import Sequence
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess

import keras
import tensorflow as tf

import transvw_tf2
from transvw_tf2.training import devices

SUMMARY_FILE = 'summary.json'
_PACKAGES = (
  *('transvw-tf2', 'tensorflow', 'keras', 'numpy', 'tensorflow-datasets'),
)
_VALIDATION = 'validation/'
_PER_SECOND = '_per_second'


def write_summary(
  workdir: str,
  rows: Sequence[Mapping[str, float]],
  *,
  seconds: float,
  ended: str,
  strategy: tf.distribute.Strategy,
  model: keras.Model,
  config: str,
  best_metric: str = 'loss',
  rising: bool = False,
  source: Mapping[str, object] | None = None,
) -> None:
  """Writes summary.json.

  Numbers that are not finite, and what is not known, are null.

  Args:
    workdir: folder of the run, existing.
    rows: of history.csv.
    seconds: that the run took, all calls of a resumed one together.
    ended: why it is over, such as 'last epoch' or 'early stopping', or
      'interrupted' if it is not.
    strategy: of the run.
    model: of the run, built.
    config: the operative configuration of gin.
    best_metric: of validation, by which the best epoch is chosen.
    rising: whether it should rise.
    source: from `describe_source`, called when the run began, for the files may
      have changed since; None looks now.

  Raises:
    OSError: it cannot be written; the file that was there stays.
  """
  best = _best_row(rows, _VALIDATION + best_metric, rising)
  summary = {
    'ended': ended,
    'epochs': rows[-1]['epoch'] if rows else 0,
    'best_metric': best_metric,
    'best_epoch': best.get('epoch'),
    'best_validation': _validation(best),
    'last_validation': _validation(rows[-1] if rows else {}),
    'seconds': seconds,
    **_median_speeds(rows),
    'parameters': model.count_params(),
    'trainable_parameters': sum(
      math.prod(one.shape) for one in model.trainable_variables
    ),
    'replicas': strategy.num_replicas_in_sync,
    'devices': _device_names(strategy),
    'versions': _versions(),
    'source': dict(source or describe_source()),
    'config': config,
  }
  path = os.path.join(workdir, SUMMARY_FILE)
  with open(path + '.tmp', 'w', encoding='utf-8') as file:
    json.dump(_finite_or_none(summary), file, indent=1, allow_nan=False)
    file.write('\n')
  os.replace(path + '.tmp', path)


def describe_source(package: str | None = None) -> dict[str, object]:
  """Returns which source the run is of, as git knows it.

  Args:
    package: folder of the package, by default that of this one.

  Returns:
    `commit` and whether the files of the package have `local_changes`; both
    None where it is not in a checkout of its own: installed, or among the
    files of another project, or git is missing.
  """
  unknown = {'commit': None, 'local_changes': None}
  package = os.path.realpath(package or os.path.dirname(transvw_tf2.__file__))
  root, name = os.path.split(package)
  try:
    top = _git(root, 'rev-parse', '--show-toplevel')
    if os.path.realpath(top) != root or not _git(root, 'ls-files', '--', name):
      return unknown
    return {
      'commit': _git(root, 'rev-parse', 'HEAD'),
      'local_changes': bool(_git(root, 'status', '--porcelain', '--', name)),
    }
  except (OSError, subprocess.SubprocessError):
    return unknown


def _git(folder, *arguments) -> str:
  # Variables such as GIT_DIR, set while a hook runs, point elsewhere.
  environment = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith('GIT_')
  }
  done = subprocess.run(
    ['git', '--no-optional-locks', *arguments],
    cwd=folder,
    env=environment,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=10,
    check=True,
  )
  return done.stdout.strip()


def _best_row(rows, name, rising) -> Mapping[str, float]:
  finite = [row for row in rows if math.isfinite(row.get(name, math.nan))]
  # The first of equal ones, as in checkpoints/best.
  choose = max if rising else min
  return choose(finite, key=lambda row: row[name], default={})


def _validation(row) -> dict[str, float]:
  return {
    name.removeprefix(_VALIDATION): value
    for name, value in row.items()
    if name.startswith(_VALIDATION)
  }


def _median_speeds(rows) -> dict[str, float]:
  """Returns medians over the epochs of columns such as cubes_per_second."""
  names = [name for name in (rows[-1] if rows else {}) if _PER_SECOND in name]
  return {
    name: statistics.median(known)
    for name in names
    if (
      known := [
        row[name] for row in rows if not math.isnan(row.get(name, math.nan))
      ]
    )
  }


def _device_names(strategy) -> list[str]:
  """Returns the hardware that this worker trains on, a name per replica."""
  replicas = strategy.extended.worker_devices
  if not devices.uses_gpu(strategy):
    return [_cpu_name()] * len(replicas)
  gpus = tf.config.get_visible_devices('GPU')
  details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
  return [
    detail.get('device_name', gpu.name)
    for detail, gpu in zip(details, gpus, strict=True)
  ]


def _cpu_name() -> str:
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as file:
      for line in file:
        if line.startswith('model name'):
          return line.partition(':')[2].strip()
  except OSError:  # not Linux
    pass
  return platform.processor() or platform.machine()


def _versions() -> dict[str, str | None]:
  versions = {'python': platform.python_version()}
  for package in _PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = None
  # GPU builds of some vendors have another package name.
  return versions | {'tensorflow': tf.__version__}


def _finite_or_none(value):
  """Replaces numbers that JSON does not have."""
  if isinstance(value, dict):
    return {name: _finite_or_none(one) for name, one in value.items()}
  if isinstance(value, list):
    return [_finite_or_none(one) for one in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
