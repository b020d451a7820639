"""Plots of a transfer study."""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools

from matplotlib import figure
from matplotlib import ticker
import numpy as np
import pandas as pd

from transvw_tf2 import output_file
from transvw_tf2.study import runs as runs_lib
from transvw_tf2.study import tables

# Of Okabe and Ito, told apart by the colour-blind too.
_COLORS = ('#000000', '#E69F00', '#56B4E9', '#009E73', '#D55E00', '#CC79A7')
# More inits than colours are told apart by their lines.
_STYLES = [
  {'color': color, 'linestyle': line}
  for line in ('-', '--', ':')
  for color in _COLORS
]


def draw_fractions(summary: pd.DataFrame) -> figure.Figure:
  """Draws the metric of each task against the fraction of the labels.

  Args:
    summary: as of `tables.summarize`; bars are one sd either way.
  """
  tasks = list(dict.fromkeys(summary['task']))
  drawn = figure.Figure(figsize=(4.5 * len(tasks), 3.6), layout='constrained')
  for axes, task in zip(
    drawn.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True
  ):
    of_task = summary[summary['task'] == task]
    inits = tables.sort_inits(of_task['init'])
    for style, init in zip(itertools.cycle(_STYLES), inits, strict=False):
      line = of_task[of_task['init'] == init].sort_values('fraction')
      axes.errorbar(
        100 * line['fraction'],
        line['mean'],
        yerr=line['sd'].fillna(0),
        label=init,
        **style,
        marker='o',
        markersize=4,
        capsize=3,
      )
    percents = sorted(set(100 * of_task['fraction']))
    axes.set_xscale('log')
    axes.set_xticks(percents, [f'{one:g}' for one in percents], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel('labelled patients, %')
    axes.set_ylabel(runs_lib.title(task, of_task['metric'].iloc[0]))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
  return drawn


def draw_learning_curves(
  title: str,
  histories: Mapping[tuple[float, str], Sequence[Sequence[float]]],
) -> figure.Figure:
  """Draws the metric of validation, epoch by epoch.

  Args:
    title: of the metric.
    histories: the metric of each epoch of each seed by fraction and init. A
      line is the mean over the seeds, the band their range; where runs end at
      different epochs both end with the first.
  """
  fractions = sorted({fraction for fraction, _ in histories})
  inits = tables.sort_inits(init for _, init in histories)
  drawn = figure.Figure(
    figsize=(4.5 * len(fractions), 3.6), layout='constrained'
  )
  row = drawn.subplots(1, len(fractions), squeeze=False)[0]
  for axes, fraction in zip(row, fractions, strict=True):
    for style, init in zip(itertools.cycle(_STYLES), inits, strict=False):
      seeds = histories.get((fraction, init))
      if not seeds:
        continue
      epochs = min(len(one) for one in seeds)
      curves = np.array([one[:epochs] for one in seeds])
      steps = np.arange(1, epochs + 1)
      axes.plot(steps, curves.mean(axis=0), label=init, **style)
      axes.fill_between(
        *(steps, curves.min(axis=0), curves.max(axis=0)),
        color=style['color'],
        alpha=0.15,
      )
    axes.set_title(f'{100 * fraction:g} % of the labels')
    axes.set_xlabel('epoch')
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_ylabel(f'{title}, validation')
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
  return drawn


def save(path: str, drawn: figure.Figure) -> None:
  """Writes a PNG."""
  with output_file.replacing(path) as partial:
    drawn.savefig(partial, dpi=120, format='png')
