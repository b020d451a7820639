"""Means and significance of a study, by closed forms."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.study import study_rows
from transvw_tf2 import errors
from transvw_tf2.study import tables


def test_the_summary_is_a_paired_test_against_scratch():
  summary = tables.summarize(study_rows.make_rows(study_rows.VALUES)).set_index(
    ['init', 'fraction']
  )
  assert len(summary) == len(study_rows.VALUES)
  for key, values in study_rows.VALUES.items():
    assert summary.loc[key, 'runs'] == 3
    assert summary.loc[key, 'mean'] == pytest.approx(np.mean(values))
    assert summary.loc[key, 'sd'] == pytest.approx(np.std(values, ddof=1))
  for key in (('both', 0.1), ('both', 1.0), ('words', 0.1)):
    one, scratch = (
      np.array(study_rows.VALUES[key]),
      study_rows.VALUES['scratch', key[1]],
    )
    # The closed form of the paired test.
    t = (one - scratch).mean() / (one - scratch).std(ddof=1) * np.sqrt(3)
    assert summary.loc[key, 'p'] == pytest.approx(2 * stats.t.sf(abs(t), 2))
    assert summary.loc[key, 'difference'] == pytest.approx(
      (one - scratch).mean()
    )
  for key in (('both', 0.5), ('scratch', 0.1)):
    assert np.isnan(summary.loc[key, 'p'])


def test_seeds_are_paired_by_number_not_by_place():
  rows = study_rows.make_rows(study_rows.VALUES)
  shuffled = rows.sample(frac=1.0, random_state=1)
  # A seed that only one of the two has does not count.
  shuffled = shuffled[
    ~((shuffled['init'] == 'scratch') & (shuffled['seed'] == 2))
  ]
  summary = tables.summarize(shuffled).set_index(['init', 'fraction'])
  wanted = stats.ttest_rel([0.70, 0.71], [0.50, 0.55]).pvalue
  assert summary.loc[('both', 0.1), 'p'] == pytest.approx(wanted)
  assert summary.loc[('both', 0.1), 'runs'] == 3


def test_the_table_says_with_how_few_labels_scratch_is_reached():
  text = tables.to_markdown(
    tables.summarize(study_rows.make_rows(study_rows.VALUES))
  )
  lines = text.splitlines()
  assert lines[0] == (
    '| nodules, AUC | 10 % of the labels | 50 % of the labels | 100 % of the'
    ' labels |'
  )
  assert lines[2].startswith('| scratch | 0.550 ± 0.050 |  | 0.800 ± 0.020 |')
  p = stats.ttest_rel(
    *(study_rows.VALUES[one, 0.1] for one in ('both', 'scratch'))
  )
  assert f'| both | 0.717 ± 0.021 (p = {p.pvalue:.2g}) |' in lines[3]
  assert 'both reaches scratch with all labels (0.800) with 50 % of them.' in (
    lines
  )
  assert 'words does not reach scratch with all labels (0.800).' in lines


def _with_another_rate():
  """Returns rows that have a second network each, worse in validation."""
  rows = study_rows.make_rows(study_rows.VALUES)
  worse = rows.assign(
    learning_rate=1e-2,
    validation=rows['validation'] - 0.1 * rows['seed'],
    value=np.nan,
  )
  return pd.concat([worse, rows], ignore_index=True)


def test_networks_that_were_not_measured_do_not_count():
  pd.testing.assert_frame_equal(
    tables.summarize(_with_another_rate()),
    tables.summarize(study_rows.make_rows(study_rows.VALUES)),
  )


def test_validation_is_compared_by_learning_rate():
  summary = tables.summarize_learning_rates(_with_another_rate())
  cells = summary.set_index(['init', 'fraction', 'learning_rate'])
  worse = [0.50 - 0.1, 0.60 - 0.2, 0.55 - 0.3]
  cell = cells.loc[('scratch', 0.1, 1e-2)]
  assert cell['mean'] == pytest.approx(np.mean(worse))
  assert cell['sd'] == pytest.approx(np.std(worse, ddof=1))
  assert cell['runs'] == 3
  lines = tables.learning_rates_to_markdown(summary).splitlines()
  assert lines[:3] == [
    '| validation of nodules, AUC, 10 % of the labels | learning rate 0.001 |'
    ' learning rate 0.01 |',
    '|---|---|---|',
    f'| scratch | 0.550 ± 0.050 | {cell["mean"]:.3f} ± {cell["sd"]:.3f} |',
  ]
  one_rate = tables.summarize_learning_rates(
    study_rows.make_rows(study_rows.VALUES)
  )
  assert tables.learning_rates_to_markdown(one_rate) == ''


def test_a_table_of_something_else_is_named(tmp_path):
  path = tmp_path / 'rows.csv'
  assert tables.read_rows(str(path)).empty
  path.write_text('a,b\n1,2\n')
  with pytest.raises(errors.UserError, match=r'rows\.csv is not the table of'):
    tables.read_rows(str(path))


def test_numbers_come_back_to_the_last_bit(tmp_path):
  rows = study_rows.make_rows(study_rows.VALUES)
  rows['value'] = np.random.default_rng(0).random(len(rows))
  path = str(tmp_path / 'rows.csv')
  tables.write(path, rows)
  found = tables.read_rows(path)
  assert list(found['value']) == list(rows['value'])
  assert list(found['seed']) == list(rows['seed'])


def test_a_run_that_is_there_twice_is_refused(tmp_path):
  rows = study_rows.make_rows(study_rows.VALUES)
  path = tmp_path / 'rows.csv'
  rows.to_csv(path, index=False)
  text = path.read_text()
  path.write_text(text + text.splitlines()[1] + '\n')
  with pytest.raises(errors.UserError, match='a run is there twice'):
    tables.read_rows(str(path))


def test_a_run_has_one_value(tmp_path):
  rows = _with_another_rate()
  path = str(tmp_path / 'rows.csv')
  tables.write(path, rows)
  pd.testing.assert_frame_equal(tables.read_rows(path), rows)
  tables.write(path, rows.fillna({'value': 0.5}))
  with pytest.raises(errors.UserError, match='a run is there twice'):
    tables.read_rows(path)


def test_names_that_look_like_missing_values_come_back(tmp_path):
  rows = study_rows.make_rows({('None', 0.1): [0.5], ('NA', 0.1): [np.nan]})
  tables.write(str(tmp_path / 'rows.csv'), rows)
  read = tables.read_rows(str(tmp_path / 'rows.csv'))
  pd.testing.assert_frame_equal(read, rows, check_dtype=False)
