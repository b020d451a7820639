"""Plots of a study show what is in its tables."""

import numpy as np
from PIL import Image

from tests.study import study_rows
from transvw_tf2.study import plots
from transvw_tf2.study import tables


def test_plots_show_every_init_and_fraction(tmp_path):
  summary = tables.summarize(study_rows.make_rows(study_rows.VALUES))
  drawn = plots.draw_fractions(summary)
  (axes,) = drawn.axes
  assert axes.get_legend_handles_labels()[1] == ['scratch', 'both', 'words']
  assert [one.get_text() for one in axes.get_xticklabels()] == [
    '10',
    '50',
    '100',
  ]
  drawn = plots.draw_learning_curves(
    'nodules, AUC',
    {
      (0.1, 'both'): [[0.1, 0.2, 0.3], [0.3, 0.4]],
      (1.0, 'scratch'): [[0.2, 0.5]],
    },
  )
  tenth, whole = drawn.axes
  (line,) = tenth.lines
  np.testing.assert_allclose(line.get_ydata(), [0.2, 0.3])
  assert [one.get_label() for one in whole.lines] == ['scratch']
  plots.save(str(tmp_path / 'curves.png'), drawn)
  with Image.open(tmp_path / 'curves.png') as picture:
    assert min(picture.size) > 300


def test_more_inits_than_colours_are_all_drawn():
  inits = ['scratch', *'abcdefgh']
  summary = tables.summarize(
    study_rows.make_rows({(init, 1.0): [0.5, 0.6] for init in inits})
  )
  (axes,) = plots.draw_fractions(summary).axes
  assert axes.get_legend_handles_labels()[1] == inits
  curves = {(1.0, init): [[0.1, 0.2]] for init in inits}
  (axes,) = plots.draw_learning_curves('nodules, AUC', curves).axes
  assert [one.get_label() for one in axes.lines] == inits
