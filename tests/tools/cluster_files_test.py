"""Files for SLURM and Kubernetes, with stand-ins for what runs them there."""

import os
import re
import subprocess

from kubernetes import client
import pytest
import tensorflow as tf
import yaml

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_FOLDER = os.path.join(_ROOT, 'tools', 'cluster')
_SCONTROL = r"""
if [ "$1 $2" = 'show hostnames' ]; then
  printf 'node9\nnode10\n'
else
  echo "$@" >> "$LOG"
fi
"""
# Both tasks, in the order of their numbers; the last code is that of all.
_SRUN = """
shift
SLURM_PROCID=0 "$@" && SLURM_PROCID=1 "$@"
"""
# In place of the trainer.
_PYTHON = """
echo "$TF_CONFIG|$*"
exit "$CODE"
"""


def _write_programs(folder, **programs):
  for name, text in programs.items():
    path = folder / name
    path.write_text('#!/usr/bin/env bash\n' + text)
    path.chmod(0o755)


def _run(command, folder, **variables):
  return subprocess.run(
    command,
    capture_output=True,
    text=True,
    cwd=_ROOT,
    env={
      'PATH': f'{folder}{os.pathsep}{os.environ["PATH"]}',
      'LOG': str(folder / 'log'),
      **variables,
    },
    check=False,
  )


def _resolve(line, monkeypatch):
  """Returns addresses and task as TensorFlow reads them."""
  monkeypatch.setenv('TF_CONFIG', line.partition('|')[0])
  resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
  addresses = resolver.cluster_spec().as_dict()['worker']
  return addresses, resolver.task_type, resolver.task_id


def test_slurm_gives_each_task_its_place(tmp_path, monkeypatch):
  _write_programs(tmp_path, scontrol=_SCONTROL, srun=_SRUN, python=_PYTHON)
  done = _run(
    ['bash', f'{_FOLDER}/pretrain.sbatch', '--workdir', 'a b'],
    tmp_path,
    SLURM_JOB_NODELIST='node[9-10]',
    SLURM_JOB_ID='17',
    CODE='0',
  )
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  # In the order of SLURM, by which it numbers the tasks.
  addresses = ['node9:12345', 'node10:12345']
  for number, line in enumerate(lines):
    assert _resolve(line, monkeypatch) == (addresses, 'worker', number)
    assert line.endswith('|-m transvw_tf2.train --workdir a b')
  assert len(lines) == 2
  assert not (tmp_path / 'log').exists()


@pytest.mark.parametrize(
  ('code', 'asked'), [(75, 'requeue 17\n'), (1, None), (137, None)]
)
def test_slurm_goes_on_after_a_signal_alone(tmp_path, code, asked):
  _write_programs(tmp_path, scontrol=_SCONTROL, srun=_SRUN, python=_PYTHON)
  done = _run(
    ['bash', f'{_FOLDER}/pretrain.sbatch'],
    tmp_path,
    SLURM_JOB_NODELIST='node[9-10]',
    SLURM_JOB_ID='17',
    CODE=str(code),
  )
  assert done.returncode == code
  log = tmp_path / 'log'
  assert (log.read_text() if log.exists() else None) == asked


def _kubernetes():
  with open(f'{_FOLDER}/pretrain_kubernetes.yaml', encoding='utf-8') as file:
    return list(yaml.safe_load_all(file))


def _check_fields(value, kind):
  """Raises AssertionError for a field that Kubernetes does not know."""
  if found := re.fullmatch(r'(?i)list\[(.+)\]', kind):
    assert isinstance(value, list)
    for one in value:
      _check_fields(one, found[1])
  elif model := getattr(client, kind, None):
    kinds = {
      key: model.openapi_types[name]
      for name, key in model.attribute_map.items()
    }
    for key, one in value.items():
      assert key in kinds, f'{kind} has no {key}'
      _check_fields(one, kinds[key])
  else:
    python = {'str': str, 'int': int, 'bool': bool}.get(kind, object)
    assert isinstance(value, python), f'{value!r} is no {kind}'


def test_kubernetes_knows_every_field():
  service, job = _kubernetes()
  _check_fields(service, 'V1Service')
  _check_fields(job, 'V1Job')
  job['spec']['template']['spec']['containers'][0]['volumeMount'] = []
  with pytest.raises(AssertionError, match='V1Container has no volumeMount'):
    _check_fields(job, 'V1Job')


def test_kubernetes_gives_each_pod_its_place(tmp_path, monkeypatch):
  service, job = _kubernetes()
  spec = job['spec']['template']['spec']
  (container,) = spec['containers']
  (workers,) = [one['value'] for one in container['env']]
  port = service['spec']['ports'][0]['port']
  name = job['metadata']['name']
  # Kubernetes names the pods of an indexed job so, below its service.
  assert spec['subdomain'] == service['metadata']['name']
  assert service['spec']['selector'] == {'job-name': name}
  addresses = [
    f'{name}-{index}.{spec["subdomain"]}:{port}'
    for index in range(job['spec']['completions'])
  ]
  _write_programs(tmp_path, python=_PYTHON)
  for index in range(job['spec']['completions']):
    done = _run(
      container['command'],
      tmp_path,
      WORKERS=workers,
      JOB_COMPLETION_INDEX=str(index),
      CODE='0',
    )
    assert done.returncode == 0, done.stderr
    found = _resolve(done.stdout, monkeypatch)
    assert found == (addresses, 'worker', index)
    assert '-m transvw_tf2.train --gin_file=gin/runs/pretrain.gin' in (
      done.stdout
    )


def test_images_are_built_from_files_that_are_there():
  for name, extras in (('train', 'cuda'), ('beam_worker', 's3')):
    with open(f'{_FOLDER}/{name}.Dockerfile', encoding='utf-8') as file:
      text = file.read()
    assert f'-f tools/cluster/{name}.Dockerfile' in text
    with open(os.path.join(_ROOT, 'setup.py'), encoding='utf-8') as file:
      known = re.findall(r"^    '(\w+)': \[", file.read(), re.MULTILINE)
    assert set(re.findall(r'/src\[(\w+)\]', text)) == {extras} <= set(known)
