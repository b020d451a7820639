r"""Measures what pre-training is worth: fine-tunes from several starts.

  python tools/transfer_study.py --output STUDY \
      --data candidates=TARGETS/luna16_nodules/false_positive_reduction \
      --data nodules=TARGETS/luna16_nodules/nodule_segmentation \
      --init both=PRETRAINED --init words=WORDS --init restoration=RESTORATION \
      --init official=OFFICIAL.keras --fractions 0.1,0.5,1 --seeds 5 \
      --learning_rates candidates=1e-4,1e-3

trains networks from scratch too, and measures all of them on the test split.
STUDY gets rows.csv (a row per network), summary.csv (mean, sd and a paired
t-test against scratch over the seeds), learning_rates.csv (validation by
learning rate), summary.md (both as tables), fractions.png and, by task, a plot
of learning curves. The same command again goes on where it was stopped;
with more inits, fractions, seeds or tasks it adds these.
"""

from collections.abc import Iterator
from concurrent import futures
import contextlib
import json
import multiprocessing
import os

from absl import flags
import pandas as pd

from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2 import output_file
from transvw_tf2 import output_lock
from transvw_tf2.study import plots
from transvw_tf2.study import runs as runs_lib
from transvw_tf2.study import tables
from transvw_tf2.training import reports

_DATA = flags.DEFINE_multi_string(
  'data',
  None,
  'NAME=FOLDER, a target task and its data set: of masks, or of classes.',
  required=True,
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder of the study.', required=True
)
_INIT = flags.DEFINE_multi_string(
  'init',
  [],
  'NAME=WORKDIR or NAME=FILE.keras, weights to begin with; random ones are'
  ' always tried.',
)
_FRACTIONS = flags.DEFINE_list(
  'fractions', ['0.1', '1'], 'Of the training patients.'
)
_SEEDS = flags.DEFINE_integer('seeds', 5, 'Runs of each.', lower_bound=1)
_GIN_PARAM = flags.DEFINE_multi_string(
  'gin_param',
  [],
  "For all runs, such as 'train.epochs = 30', or for those of one task, such as"
  " 'nodules:train.epochs = 30'.",
)
_LEARNING_RATES = flags.DEFINE_multi_string(
  'learning_rates',
  [],
  'NAME=RATE,RATE... of a task: each run trains with all of them, and measures'
  ' the network with the best metric of validation. Else that of its gin'
  ' parameters.',
)
_PROCESSES = flags.DEFINE_integer(
  'processes', 1, 'Runs at a time.', lower_bound=1
)

ROWS_FILE = 'rows.csv'
SUMMARY_FILE = 'summary.csv'
LEARNING_RATES_FILE = 'learning_rates.csv'
MARKDOWN_FILE = 'summary.md'
FRACTIONS_FILE = 'fractions.png'
_SETTINGS_FILE = 'study.json'
# What the paths of flags are.
_PATHS = {
  'data': 'the folder of a data set',
  'init': 'the --workdir of a run, or a .keras file',
}
# TensorFlow keeps some memory of each network.
_RUNS_OF_A_PROCESS = 12


def main(argv):
  del argv
  tasks = {
    name: runs_lib.open_task(path) for name, path in _parse(_DATA).items()
  }
  plan = runs_lib.Plan(
    tasks=tasks,
    learning_rates=_parse_learning_rates(tasks),
    starts=_parse(_INIT, reserved=(runs_lib.SCRATCH,)),
    parameters=tuple(_GIN_PARAM.value),
    folder=os.path.abspath(_OUTPUT.value),
  )
  wanted = _list_runs(plan)
  # What is wrong in them must not become the study's.
  runs_lib.check_parameters(plan)
  with output_lock.hold(plan.folder):
    _write_settings(plan)
    _go_on(plan, wanted)


def _go_on(plan, wanted) -> None:
  """Does the runs that are not there yet, and reports all."""
  path = os.path.join(plan.folder, ROWS_FILE)
  rows = tables.read_rows(path)
  done = {
    runs_lib.Run(*run) for run in rows[tables.RUN].itertuples(index=False)
  }
  missing = [run for run in wanted if run not in done]
  # Now, and not when the first of them begins after hours.
  runs_lib.check_labels(plan, missing)
  if len(missing) < len(wanted):
    print(f'{len(wanted) - len(missing)} of {len(wanted)} runs are there')
  # Closed, or an error here would wait for the trainings that go on.
  with contextlib.closing(_run_all(plan, missing, _PROCESSES.value)) as results:
    for number, (run, new) in enumerate(results, 1):
      new = pd.DataFrame(new)
      rows = pd.concat([rows, new], ignore_index=True)
      rows = rows.sort_values(tables.NETWORK, ignore_index=True)
      tables.write(path, rows)
      runs_lib.remove_weights(plan, run)
      best = tables.measured(new).iloc[0]
      print(
        f'[{number}/{len(missing)}] {runs_lib.describe(run)}: {best["metric"]}'
        f' {best["value"]:.4f} in {new["seconds"].sum():.0f} s',
        flush=True,
      )
  report(plan, rows)


def report(plan: runs_lib.Plan, rows: pd.DataFrame) -> None:
  """Writes tables and plots of all rows."""
  summary = tables.summarize(rows)
  tables.write(os.path.join(plan.folder, SUMMARY_FILE), summary)
  by_rate = tables.summarize_learning_rates(rows)
  tables.write(os.path.join(plan.folder, LEARNING_RATES_FILE), by_rate)
  parts = (
    tables.to_markdown(summary),
    tables.learning_rates_to_markdown(by_rate),
  )
  text = '\n'.join(filter(None, parts))
  with (
    output_file.replacing(os.path.join(plan.folder, MARKDOWN_FILE)) as partial,
    open(partial, 'w', encoding='utf-8') as file,
  ):
    file.write(text)
  plots.save(
    os.path.join(plan.folder, FRACTIONS_FILE), plots.draw_fractions(summary)
  )
  for (task, metric), of_task in tables.measured(rows).groupby(
    ['task', 'metric']
  ):
    histories = _read_histories(plan, of_task, f'validation/{metric}')
    if histories:
      plots.save(
        os.path.join(plan.folder, f'learning_curves_{task}.png'),
        plots.draw_learning_curves(runs_lib.title(task, metric), histories),
      )
  print(text, end='')
  print(f'wrote {plan.folder}')


def _read_histories(
  plan, of_task, column
) -> dict[tuple[float, str], list[list[float]]]:
  """Returns a column of the runs' histories by fraction and init.

  Without those whose folders were removed, which is told.
  """
  histories, missing = {}, 0
  for row in of_task.itertuples():
    run = runs_lib.Run(row.task, row.init, row.fraction, row.seed)
    workdir = plan.workdir(run, row.learning_rate)
    if not os.path.exists(os.path.join(workdir, reports.HISTORY_FILE)):
      missing += 1
      continue
    histories.setdefault((run.fraction, run.init), []).append(
      [epoch[column] for epoch in reports.read_history(workdir)]
    )
  if missing:
    print(f'learning curves: without {missing} runs, whose folders are gone')
  return histories


def _parse(flag, reserved=()) -> dict[str, str]:
  """Returns the paths of a flag that is given as NAME=PATH, by name."""
  found = {}
  for text in flag.value:
    name, _, path = text.partition('=')
    if not (name.isidentifier() and path) or name in reserved:
      raise errors.UserError(
        f'--{flag.name} must be NAME=PATH, the name of letters and digits'
        + ''.join(f' and not {one}' for one in reserved)
        + f', got {text}'
      )
    if name in found:
      raise errors.UserError(f'--{flag.name} {name} is given twice')
    if not os.path.exists(path):
      raise errors.UserError(
        f'--{flag.name} {text}: {path} does not exist; wanted'
        f' {_PATHS[flag.name]}'
      )
    found[name] = os.path.abspath(path)
  return found


def _parse_learning_rates(tasks) -> dict[str, list[float]]:
  """Returns the learning rates by task; those without any are left out."""
  found = {}
  for text in _LEARNING_RATES.value:
    name, _, rates = text.partition('=')
    if name in found:
      raise errors.UserError(f'--learning_rates {name} is given twice')
    try:
      found[name] = _unique(float(rate) for rate in rates.split(','))
    except ValueError:
      found[name] = [0.0]
    positive = all(0 < rate < float('inf') for rate in found[name])
    if name not in tasks or not positive:
      raise errors.UserError(
        f'--learning_rates {text}: wanted NAME=RATE,RATE..., the name one of'
        f' {", ".join(tasks)} and the rates above 0'
      )
  return found


def _unique(numbers) -> list[float]:
  """Returns them once each, with the digits that names of folders have."""
  return list(dict.fromkeys(float(f'{number:g}') for number in numbers))


def _list_runs(plan) -> list[runs_lib.Run]:
  """Returns all runs wanted, those of a seed together."""
  fractions = []
  for text in _FRACTIONS.value:
    try:
      fractions.append(float(text))
    except ValueError:
      fractions.append(0.0)
    if not 0 < fractions[-1] <= 1:
      raise errors.UserError(
        f'--fractions has {text!r}, wanted numbers above 0 and at most 1'
      )
  return [
    runs_lib.Run(task, init, fraction, seed)
    for seed in range(1, _SEEDS.value + 1)
    for task in plan.tasks
    for fraction in _unique(fractions)
    for init in (runs_lib.SCRATCH, *plan.starts)
  ]


def _write_settings(plan) -> None:
  """Files what the study is of; refuses a folder of another one."""
  path = os.path.join(plan.folder, _SETTINGS_FILE)
  settings = {
    'gin_param': {name: plan.parameters_of(name) for name in plan.tasks},
    'learning_rates': {
      name: plan.learning_rates.get(name, []) for name in plan.tasks
    },
    'data': {name: task.data_dir for name, task in plan.tasks.items()},
    'init': dict(plan.starts),
    'changed': runs_lib.fingerprints(plan),
  }
  try:
    os.makedirs(plan.folder, exist_ok=True)
    if os.path.exists(path):
      with open(path, encoding='utf-8') as file:
        _merge(plan.folder, json.load(file), settings)
  except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
    raise errors.UserError(
      f'--output {plan.folder} cannot be used ({error}): give another folder'
    ) from error
  with (
    output_file.replacing(path) as partial,
    open(partial, 'w', encoding='utf-8') as file,
  ):
    json.dump(settings, file, indent=1)
    file.write('\n')


def _merge(folder, before, settings) -> None:
  """Adds tasks and inits of before; what is there already has to be equal."""
  for name in settings:
    # Studies were begun before there was the last.
    known = before.get(name, {}) if name == 'changed' else before[name]
    for key, value in known.items():
      now = settings[name].setdefault(key, value)
      if value != now and name == 'changed':
        raise errors.UserError(
          f'--output {folder} holds results of {key} as it was before it was'
          ' built or trained anew: give another --output'
        )
      if value != now:
        raise errors.UserError(
          f'--output {folder} holds a study with --{name} {key} {value}, now'
          f' it is {now}: give another --output'
        )


def _run_all(
  plan, missing, processes
) -> Iterator[tuple[runs_lib.Run, list[dict[str, object]]]]:
  """Yields runs with their rows, as they are done."""
  # Not max_tasks_per_child: with it the pool of Python 3.11 hangs once all its
  # processes have had their share.
  together = processes * _RUNS_OF_A_PROCESS
  for start in range(0, len(missing), together):
    yield from _run_some(plan, missing[start : start + together], processes)


def _run_some(plan, missing, processes):
  """Does what `_run_all` does, in new processes."""
  pool = futures.ProcessPoolExecutor(
    processes,
    # TensorFlow does not survive a fork.
    mp_context=multiprocessing.get_context('spawn'),
    initializer=runs_lib.begin_process,
    initargs=(os.getpid(), processes),
  )
  try:
    runs = {
      pool.submit(runs_lib.run_in_process, plan, run): run for run in missing
    }
    for future in futures.as_completed(runs):
      yield runs[future], future.result()
  except futures.BrokenExecutor as error:
    raise errors.UserError(
      'a process that trained was killed, maybe for want of memory: the same'
      f' command with --processes below {processes}, or a smaller'
      ' train.batch_size, goes on where it stopped; the log.txt of each run is'
      f' below {plan.folder}'
    ) from error
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
    # Else an error would wait for the other trainings to end. They go on from
    # their checkpoints the next time.
    for process in multiprocessing.active_children():
      process.kill()


if __name__ == '__main__':
  mains.run(main)
