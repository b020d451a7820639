"""Brute force for the tests of similar places."""

import numpy as np
from sklearn import covariance

from beam_jobs import embedding_files


def read_all(folder):
  """Returns the embeddings of all scans in a folder, by id in order."""
  return [
    embedding_files.read_scan(folder, one)
    for one in embedding_files.list_scans(folder)
  ]


def cosine(one, other):
  """Returns the cosine of two rows, in float64."""
  one, other = one.astype(float), other.astype(float)
  return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def whiten(rows):
  """Whitens by scikit-learn's precision: W W' is what it inverts."""
  estimate = covariance.OAS().fit(np.asarray(rows, np.float64))
  return (rows - estimate.location_) @ np.linalg.cholesky(estimate.precision_)
