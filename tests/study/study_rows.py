"""Rows of a made-up study."""

import pandas as pd


def make_rows(values, metric='auc'):
  """Returns rows of a study from values by (init, fraction)."""
  return pd.DataFrame(
    [
      {
        'task': 'nodules',
        'init': init,
        'fraction': fraction,
        'seed': seed,
        'learning_rate': 1e-3,
        'epochs': 3,
        'best_epoch': 2,
        'metric': metric,
        'validation': value,
        'value': value,
        'seconds': 1.5,
      }
      for (init, fraction), of_seeds in values.items()
      for seed, value in enumerate(of_seeds, 1)
    ]
  )


VALUES = {
  ('scratch', 0.1): [0.50, 0.60, 0.55],
  ('scratch', 1.0): [0.80, 0.82, 0.78],
  ('both', 0.1): [0.70, 0.74, 0.71],
  ('both', 0.5): [0.81, 0.83, 0.82],
  ('both', 1.0): [0.90, 0.91, 0.90],
  ('words', 0.1): [0.52, 0.61, 0.50],
}
