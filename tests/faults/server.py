"""Starts commands of this project without the seconds that imports take.

  python -m tests.faults.server

imports the libraries once and then forks a child for each command, which runs
it as `python -m MODULE` or `tfds` would. Reads a JSON object a line from
stdin, and answers each with one.
"""

import importlib
import json
import os
import resource
import runpy
import subprocess
import sys
import traceback

# Without flags, and without anything that starts threads when imported.
_LIBRARIES = (
  *('SimpleITK', 'apache_beam', 'gin', 'keras', 'matplotlib.figure'),
  *('mlcroissant', 'pyarrow.parquet', 'scipy.ndimage', 'sklearn.decomposition'),
  *('tensorflow', 'tensorflow_datasets', 'threadpoolctl'),
  'tensorflow_datasets.scripts.cli.main',
  'apache_beam.runners.portability.fn_api_runner',
  'beam_jobs.luna16_nodules',
  'beam_jobs.scan_embedder',
  'beam_jobs.transvw_luna16',
  'beam_jobs.word_quality',
  'transvw_tf2.training.loop',
  'transvw_tf2.training.tasks',
)


def _run(command: list[str]) -> int:
  """Runs a command to its end; returns its exit code."""
  module, *arguments = command
  sys.argv = [module, *arguments]
  try:
    if module == 'tfds':
      importlib.import_module(
        'tensorflow_datasets.scripts.cli.main'
      ).launch_cli()
    else:
      runpy.run_module(module, run_name='__main__', alter_sys=True)
  except SystemExit as end:
    return end.code if isinstance(end.code, int) else int(bool(end.code))
  except BaseException:
    traceback.print_exc()
    return 1
  return 0


def _become(request: dict) -> None:
  """Makes a child the process of a command, and never returns."""
  code = 1
  try:
    os.setsid()  # so that it can be killed with all its children
    log = os.open(request['log'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if request['file_limit']:
      # The limit is not for what it prints.
      through = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=log)
      log = through.stdin.fileno()
    for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log)):
      os.dup2(source, target)
    os.dup2(log, 2)
    if request['file_limit']:
      limit = (request['file_limit'],) * 2
      resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    code = _run(request['command'])
    sys.stdout.flush()
    sys.stderr.flush()
  finally:
    os._exit(code)


def _start(request: dict) -> int:
  pid = os.fork()
  if not pid:
    _become(request)
  return pid


def _poll(request: dict) -> int | None:
  """Returns the exit code, None while it runs; negative for a signal."""
  pid, status = os.waitpid(request['pid'], os.WNOHANG)
  return os.waitstatus_to_exitcode(status) if pid else None


def main() -> None:
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print is no answer
  for name in _LIBRARIES:
    importlib.import_module(name)
  print('null', file=answers, flush=True)
  for line in sys.stdin:
    request = json.loads(line)
    answer = {'start': _start, 'poll': _poll}[request['do']](request)
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
  main()
