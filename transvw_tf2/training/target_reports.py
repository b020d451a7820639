"""Pictures of target tasks: ROC curves, masks drawn over slices."""

from collections.abc import Mapping

import matplotlib.figure
import numpy as np
from sklearn import metrics as sklearn_metrics


def draw_roc(
  curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> matplotlib.figure.Figure:
  """Draws ROC curves.

  Args:
    curves: false and true positive rates, float (n,) rising, by class; NaN
      where the class is empty.
  """
  figure = matplotlib.figure.Figure(figsize=(4.2, 4.2), layout='constrained')
  ax = figure.subplots()
  ax.plot([0, 1], [0, 1], color='lightgray', linewidth=1)
  for name, (false, true) in curves.items():
    if not (np.isfinite(false).all() and np.isfinite(true).all()):
      ax.plot([], [], label=f'{name}: no examples of both kinds')
      continue
    area = sklearn_metrics.auc(false, true)
    ax.plot(false, true, label=f'{name}: AUC {area:.3f}')
  ax.set_xlabel('false positive rate')
  ax.set_ylabel('sensitivity')
  ax.set_aspect('equal')
  ax.legend(loc='lower right', fontsize=8)
  return figure


def draw_overlays(
  cubes: np.ndarray, masks: np.ndarray, predicted: np.ndarray
) -> matplotlib.figure.Figure:
  """Draws outlines of masks and predictions over axial slices.

  Args:
    cubes: float (N, X, Y, Z) in [0, 1].
    masks: (N, X, Y, Z), 0 or 1.
    predicted: float (N, X, Y, Z) in [0, 1], outlined at 0.5.

  Returns:
    A figure: a picture per cube, of the slice with the most voxels in the mask;
    x runs right, y down.
  """
  columns = min(6, len(cubes))
  rows = -(-len(cubes) // columns)
  figure = matplotlib.figure.Figure(
    figsize=(1.7 * columns, 1.7 * rows + 0.3), layout='constrained'
  )
  axes = figure.subplots(rows, columns, squeeze=False).ravel()
  for ax in axes:
    ax.set_axis_off()
  for ax, cube, mask, found in zip(axes, cubes, masks, predicted, strict=False):
    level = int(np.argmax(mask.sum(axis=(0, 1))))
    ax.imshow(cube[:, :, level].T, cmap='gray', vmin=0, vmax=1)
    for one, color in ((mask, 'tab:green'), (found, 'tab:orange')):
      plane = np.asarray(one[:, :, level].T, float)
      if plane.min() < 0.5 <= plane.max():
        ax.contour(plane, levels=[0.5], colors=color, linewidths=1)
  figure.suptitle('green: mask, orange: prediction', fontsize=9)
  return figure
