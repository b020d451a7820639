"""Measures the quality of words from the cubes that pass 2 writes."""

from collections.abc import Sequence
import os
import shutil

from absl import logging
from apache_beam.options import pipeline_options
import numpy as np

from beam_jobs import discovery
from beam_jobs import transforms
from transvw_tf2 import errors
from transvw_tf2.discovery import quality
from transvw_tf2.discovery import vocabulary as vocabulary_lib
from transvw_tf2.scans import luna16
from transvw_tf2.scans import phantom

_CUBES_FOLDER = 'cubes.tmp'


def cut_and_measure(
  scan_files: Sequence[luna16.ScanFile],
  vocabulary: vocabulary_lib.Vocabulary,
  scans: str,
  folder: str,
  *,
  options: pipeline_options.PipelineOptions | None = None,
) -> quality.Quality:
  """Cuts only the cubes that are measured, and removes them again.

  Args:
    scan_files: the scans that the vocabulary was made from.
    vocabulary: the words and their cubes.
    scans: see `measure`.
    folder: an existing folder, for the cubes.
    options: Beam options.

  Raises:
    UserError: as `discovery.cut_cubes`.
  """
  measured = quality.choose_measured(
    vocabulary.instances, vocabulary.settings.seed
  )
  cubes = os.path.join(folder, _CUBES_FOLDER)
  try:
    requests = discovery.cut_cubes(
      scan_files,
      measured,
      cubes,
      frame=vocabulary.settings.frame,
      options=options,
    )
    return measure(requests, vocabulary, scans)
  finally:
    shutil.rmtree(cubes, ignore_errors=True)


def measure(
  requests: Sequence[transforms.CutRequest],
  vocabulary: vocabulary_lib.Vocabulary,
  scans: str,
) -> quality.Quality:
  """Measures the quality of the words of a vocabulary.

  No scan is read: the cubes are, and of those at most `quality.MOST_CUBES`.

  Args:
    requests: from `discovery.cut_cubes`, whose files are there; they may lack
      cubes that are not measured.
    vocabulary: the words and their cubes.
    scans: folder of the scans; where `tools/make_phantom.py` made it, true
      errors are measured as well.
  """
  measured = quality.choose_measured(
    vocabulary.instances, vocabulary.settings.seed
  )
  wanted = {one: index for index, one in enumerate(measured)}
  thumbnails = np.zeros((len(measured), *quality.THUMBNAIL_SHAPE), np.float32)
  air = np.zeros(len(measured))
  for request in requests:
    written = np.lib.format.open_memmap(request.output, 'r')
    for record, one in zip(written, request.instances, strict=True):
      if one in wanted:
        cube = np.asarray(record['cube'])
        thumbnails[wanted[one]] = quality.make_thumbnail(cube)
        air[wanted[one]] = quality.air_share(cube)
  return quality.measure(
    [one.word for one in measured],
    thumbnails,
    air,
    _find_true_errors(vocabulary, scans),
  )


def _find_true_errors(vocabulary, scans):
  """Returns the true errors in mm, none where the anatomy is not known."""
  if not _is_synthetic(scans):
    return {}
  # Others may be broken: they were rejected, and show no word.
  shown = {one.scan_id for one in (*vocabulary.words, *vocabulary.instances)}
  try:
    truth = phantom.load_truth(scans, shown)
  except errors.UserError as error:
    # Of some scans, added by hand: no reason to lose the words.
    logging.warning('true errors are not measured: %s', error)
    return {}
  return quality.find_errors(vocabulary, truth)


def _is_synthetic(scans: str) -> bool:
  return all(
    os.path.exists(os.path.join(scans, name))
    for name in (phantom.SETTINGS_FILE, phantom.TRANSFORM_FOLDER)
  )
