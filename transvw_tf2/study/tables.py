"""The rows of a transfer study, their means and significance."""

import dataclasses
import math
import os

import numpy as np
import pandas as pd
from scipy import stats

from transvw_tf2 import errors
from transvw_tf2 import output_file
from transvw_tf2.study import runs as runs_lib

# Columns that tell runs apart, and the networks of runs.
RUN = [field.name for field in dataclasses.fields(runs_lib.Run)]
NETWORK = [*RUN, 'learning_rate']
_GROUP = ['task', 'metric', 'fraction', 'init']
_TYPES = {
  'task': str,
  'init': str,
  'fraction': float,
  'seed': int,
  'learning_rate': float,
  'epochs': int,
  'best_epoch': int,
  'metric': str,
  'validation': float,
  'value': float,
  'seconds': float,
}


def read_rows(path: str) -> pd.DataFrame:
  """Reads the rows of a study, none where there is no file yet.

  They are those of `runs.train_and_measure`, a network each.

  Raises:
    UserError: it is no such table.
  """
  if not os.path.exists(path):
    return pd.DataFrame(columns=list(_TYPES)).astype(_TYPES)
  try:
    # As text: some versions of pandas do not read floats to the last bit.
    # A task or an init may be called NA or None.
    rows = pd.read_csv(
      path,
      dtype=str,
      keep_default_na=False,
      na_values={'validation': '', 'value': ''},
    )[list(_TYPES)].astype(_TYPES)
    if rows.duplicated(NETWORK).any() or measured(rows).duplicated(RUN).any():
      raise ValueError('a run is there twice')
    return rows
  except (KeyError, ValueError, OverflowError, TypeError) as error:
    raise errors.UserError(
      f'{path} is not the table of a study ({error}): wanted the columns'
      f' {",".join(_TYPES)}; move it away'
    ) from error


def measured(rows: pd.DataFrame) -> pd.DataFrame:
  """Returns the rows of networks that saw the test split, one of each run."""
  return rows.dropna(subset=['value'])


def write(path: str, table: pd.DataFrame) -> None:
  """Writes a table as CSV."""
  with output_file.replacing(path) as partial:
    table.to_csv(partial, index=False, lineterminator='\n')


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
  """Returns mean, sd and a test against scratch by task, fraction and init.

  Args:
    rows: as of `read_rows`.

  Returns:
    A row per task, fraction and init: `runs`, `mean`, `sd` (of a sample),
    `difference` from scratch with the same labels, and `p` of a two-sided
    paired t-test of it over the seeds; NaN with one seed.
  """
  rows = measured(rows)
  summary = []
  for key, group in rows.groupby(_GROUP, sort=True):
    group = dict(zip(_GROUP, key, strict=True))
    values = _values(rows, group)
    pairs = pd.concat(
      [values, _values(rows, group | {'init': runs_lib.SCRATCH})],
      axis=1,
      join='inner',
    ).to_numpy()
    with np.errstate(divide='ignore', invalid='ignore'):
      p = (
        stats.ttest_rel(pairs[:, 0], pairs[:, 1]).pvalue
        if len(pairs) > 1
        else math.nan
      )
    difference = np.subtract(*pairs.T).mean() if len(pairs) else math.nan
    summary.append(
      {
        **group,
        'runs': len(values),
        'mean': values.mean(),
        'sd': values.std(),
        'difference': difference,
        'p': p,
      }
    )
  return pd.DataFrame(summary)


def summarize_learning_rates(rows: pd.DataFrame) -> pd.DataFrame:
  """Returns mean and sd in validation by task, fraction, init and rate.

  Args:
    rows: as of `read_rows`.

  Returns:
    A row per task, fraction, init and learning rate: `runs`, and of the metric
    of validation at each network's best epoch `mean` and `sd` (of a sample).
  """
  groups = rows.groupby([*_GROUP, 'learning_rate'])['validation']
  return groups.agg(runs='size', mean='mean', sd='std').reset_index()


def _values(rows, group) -> pd.Series:
  """Returns the values of a group by seed."""
  wanted = (rows[list(group)] == pd.Series(group)).all(axis=1)
  return rows[wanted].set_index('seed')['value']


def to_markdown(summary: pd.DataFrame) -> str:
  """Returns a table per task, inits down and fractions across.

  Below it stands with how few labels each init is as good as scratch with all.
  """
  parts = []
  for (task, metric), of_task in summary.groupby(['task', 'metric']):
    fractions = sorted(set(of_task['fraction']))
    inits = sort_inits(of_task['init'])
    lines = _table(
      runs_lib.title(task, metric),
      {one: f'{100 * one:g} % of the labels' for one in fractions},
      of_task.set_index(['init', 'fraction']),
    )
    parts.append('\n'.join([*lines, '', *_as_good_as_scratch(of_task, inits)]))
  return '\n\n'.join(parts) + '\n'


def learning_rates_to_markdown(summary: pd.DataFrame) -> str:
  """Returns a table per task and fraction, inits down and rates across.

  Those with a single rate are left out.

  Args:
    summary: as of `summarize_learning_rates`.
  """
  parts = []
  for key, group in summary.groupby(['task', 'metric', 'fraction']):
    task, metric, fraction = key
    rates = sorted(set(group['learning_rate']))
    if len(rates) == 1:
      continue
    lines = _table(
      f'validation of {runs_lib.title(task, metric)},'
      f' {100 * fraction:g} % of the labels',
      {rate: f'learning rate {rate:g}' for rate in rates},
      group.set_index(['init', 'learning_rate']),
    )
    parts.append('\n'.join(lines) + '\n')
  return '\n'.join(parts)


def sort_inits(inits) -> list[str]:
  """Returns the names of inits, scratch first."""
  return sorted(set(inits), key=lambda one: (one != runs_lib.SCRATCH, one))


def _table(title, columns, cells) -> list[str]:
  """Returns the lines of a table, inits down.

  Args:
    title: of the first column.
    columns: headings of the others by key.
    cells: rows of a summary by (init, key).
  """
  lines = [
    f'| {" | ".join([title, *columns.values()])} |',
    '|---' * (len(columns) + 1) + '|',
  ]
  for init in sort_inits(cells.index.get_level_values('init')):
    values = (_cell(cells, (init, key)) for key in columns)
    lines.append(f'| {" | ".join([init, *values])} |')
  return lines


def _cell(cells, key) -> str:
  if key not in cells.index:
    return ''
  cell = cells.loc[key]
  text = f'{cell["mean"]:.3f}'
  if math.isfinite(cell['sd']):
    text += f' ± {cell["sd"]:.3f}'
  if math.isfinite(cell.get('p', math.nan)):
    text += f' (p = {cell["p"]:.2g})'
  return text


def _as_good_as_scratch(of_task, inits) -> list[str]:
  """Returns lines: with how few labels an init reaches scratch with all."""
  scratch = of_task[
    (of_task['init'] == runs_lib.SCRATCH) & (of_task['fraction'] == 1)
  ]
  if scratch.empty:
    return []
  goal = scratch['mean'].item()
  lines = []
  for init in inits:
    if init == runs_lib.SCRATCH:
      continue
    good = of_task[(of_task['init'] == init) & (of_task['mean'] >= goal)]
    if good.empty:
      lines.append(
        f'{init} does not reach scratch with all labels ({goal:.3f}).'
      )
    else:
      lines.append(
        f'{init} reaches scratch with all labels ({goal:.3f}) with'
        f' {100 * good["fraction"].min():g} % of them.'
      )
  return lines
