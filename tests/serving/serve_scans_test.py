"""Whole scans over the network: the same as here, and files of ill will."""

import gzip
import io
import os
import pickle
import stat
import zipfile

import numpy as np
import pytest

from tests.serving import serve_process
from transvw_tf2.scans import geometry
from transvw_tf2.scans import reader
from transvw_tf2.serving import client as client_lib
from transvw_tf2.serving import embed
from transvw_tf2.serving import encoders
from transvw_tf2.serving import signatures

pytest.importorskip('kserve', reason=serve_process.SKIPPED)
import httpx

_SIZE = (19, 13, 10)
_PATH = '/v1/models/transvw:embed_scan'


@pytest.fixture(name='server', scope='module')
def _server(tmp_path_factory):
  folder = tmp_path_factory.mktemp('server')
  serve_process.export_encoder(folder / 'model')
  with serve_process.running(
    *(folder / 'model', folder, '--max_scan_mb=1', '--max_unpacked_mb=2'),
    *('--max_queue=4', '--max_batch=5', '--max_scan_cubes=600'),
  ) as server:
    server.encoder = encoders.load(str(folder / 'model'), signatures.CUBES)
    yield server


def _hu(size=_SIZE):
  rng = np.random.default_rng(0)
  return rng.integers(-1024, 2000, size).astype(np.int16)


def _write(folder, suffix, size=_SIZE):
  path = str(folder / f'scan{suffix}')
  reader.write_scan(path, _hu(size), geometry.Geometry(size))
  return path


def _zip(files, compression=zipfile.ZIP_DEFLATED):
  """Returns an archive of (name, bytes)."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', compression) as archive:
    for name, data in files:
      archive.writestr(name, data)
  return file.getvalue()


def _mhd_and_raw(tmp_path, folder='', size=_SIZE):
  _write(tmp_path, '.mhd', size)
  return [
    (folder + name, (tmp_path / name).read_bytes())
    for name in ('scan.mhd', 'scan.raw')
  ]


def _send(server, content, query='', **headers):
  return httpx.post(
    server.url + _PATH + query, content=content, headers=headers, timeout=60
  )


def _same(got, want):
  np.testing.assert_array_equal(got['places'], want.places)
  for name in ('embeddings', 'mean'):
    value = getattr(want, name)
    atol = 1e-5 * np.abs(value).max()
    np.testing.assert_allclose(got[name], value, rtol=0, atol=atol)


@pytest.mark.parametrize('suffix', ['.mha', '.nii', '.nii.gz', '.nrrd'])
def test_formats(server, tmp_path, suffix):
  with open(_write(tmp_path, suffix), 'rb') as file:
    answer = _send(server, file.read())
  assert answer.status_code == 200, answer.text
  _same(answer.json(), embed.embed_scan(server.encoder, _hu()))


@pytest.mark.parametrize('folder', ['', 'case/one/'])
def test_zip(server, tmp_path, folder):
  answer = _send(server, _zip(_mhd_and_raw(tmp_path, folder)))
  assert answer.status_code == 200, answer.text
  _same(answer.json(), embed.embed_scan(server.encoder, _hu()))


def test_npz_and_stride(server, tmp_path):
  content = _zip(_mhd_and_raw(tmp_path))
  answer = _send(server, content, '?stride=7,6,3', accept='application/x-npz')
  assert answer.headers['content-type'] == 'application/x-npz'
  with np.load(io.BytesIO(answer.content), allow_pickle=False) as arrays:
    got = dict(arrays)
  assert got['places'].dtype == np.int32
  assert got['embeddings'].dtype == got['mean'].dtype == np.float32
  _same(got, embed.embed_scan(server.encoder, _hu(), (7, 6, 3)))


@pytest.mark.parametrize('suffix', ['.mhd', '.nii.gz', '.mha'])
def test_client(server, tmp_path, suffix):
  client = client_lib.Client(server.url)
  got = client.embed_scan(_write(tmp_path, suffix), stride=(8, 6, 2))
  want = embed.embed_scan(server.encoder, _hu(), (8, 6, 2))
  _same(vars(got), want)
  with pytest.raises(client_lib.ServerError, match='400: stride is 9,9,9'):
    client.embed_scan(_write(tmp_path, suffix), stride=(9, 9, 9))


def _link(name):
  info = zipfile.ZipInfo(name)
  info.external_attr = (stat.S_IFLNK | 0o777) << 16
  return info


_NAMES = (
  *('../scan.mhd', '/etc/scan.mhd', 'a/../../scan.mhd', '..\\scan.mhd'),
  *('C:scan.mhd', './scan.mhd', 'a//scan.mhd', 'x' * 200 + '.mhd'),
  *('line\nscan.mhd', '~/../scan.mhd'),
)


@pytest.mark.parametrize('name', _NAMES)
def test_names_that_lead_elsewhere(server, name):
  _refused(server, _zip([(name, b'1')]), 400, 'plain relative names')


def _refused(server, content, status, reason, **headers):
  before = _around(server)
  answer = _send(server, content, **headers)
  assert answer.status_code == status, answer.text
  assert reason in answer.json()['error']
  assert str(server.temporary) not in answer.text
  assert not server.left_over()
  assert _around(server) == before


def _around(server):
  """What lies around the temporary folder, and in the working folder."""
  return sorted(os.listdir(server.temporary.parent)), sorted(os.listdir())


@pytest.mark.parametrize(
  ('files', 'status', 'reason'),
  [
    ([], 415, 'is not a scan'),
    ([('a.txt', b'1')], 400, 'holds 0 scans'),
    ([('a.mhd', b'1'), ('b.mhd', b'1')], 400, 'holds 2 scans'),
    ([('a/a.mhd', b'1'), ('b/a.raw', b'1')], 400, 'wanted one folder'),
    ([('a.mhd', b'1'), ('a.mhd', b'1')], 400, 'twice'),
    ([(f'{at}.raw', b'1') for at in range(17)], 400, 'holds 17 files'),
    ([(_link('a.mhd'), b'/etc/passwd')], 400, 'wanted plain files'),
    ([('a.mhd', b'pickle')], 400, 'not a MetaImage header'),
    ([('a.mhd', bytes(3 << 20))], 413, 'too large once unpacked'),
    ([('a.npy', pickle.dumps([1]))], 400, 'holds 0 scans'),
  ],
  ids=range(10),
)
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_archives(server, files, status, reason):
  _refused(server, _zip(files), status, reason)


def test_an_archive_that_lies_about_its_sizes(server):
  data = bytes(4 << 20)
  content = bytearray(_zip([('a.mhd', data)]))
  true = len(data).to_bytes(4, 'little')
  assert content.count(true) == 2
  content = content.replace(true, (100).to_bytes(4, 'little'))
  answer = _send(server, bytes(content))
  assert answer.status_code in (400, 413)
  assert not server.left_over()


@pytest.mark.parametrize('cut', [10, 200, -30, -1])
def test_archives_that_are_cut(server, tmp_path, cut):
  content = _zip(_mhd_and_raw(tmp_path))[:cut]
  _refused(server, content, 400, 'cannot be unpacked')


def test_archives_that_are_damaged(server, tmp_path):
  content = bytearray(_zip(_mhd_and_raw(tmp_path)))
  for at in range(2000, 2100):
    content[at] ^= 255
  _refused(server, bytes(content), 400, 'cannot be unpacked')


def test_archives_whose_parts_lie_elsewhere(server, tmp_path):
  content = _zip(_mhd_and_raw(tmp_path))
  _refused(server, content[:40] + content[60:], 400, 'cannot be unpacked')


def test_archives_of_other_methods(server, tmp_path):
  content = _zip(_mhd_and_raw(tmp_path), zipfile.ZIP_LZMA)
  _refused(server, content, 400, 'otherwise than by deflate')


@pytest.mark.parametrize(
  'line',
  [
    'ElementDataFile = /etc/passwd',
    'ElementDataFile = ../../log.txt',
    'ElementDataFile = LIST',
    'ElementDataFile = %d.raw 1 9 1',
  ],
)
def test_headers_that_name_other_files(server, tmp_path, line):
  (_, header), raw = _mhd_and_raw(tmp_path)
  header = header.replace(b'ElementDataFile = scan.raw', line.encode())
  assert line.encode() in header
  for content in (_zip([('scan.mhd', header), raw]), header):
    _refused(server, content, 400, 'one file beside the header is wanted')


def test_a_header_that_names_no_text(server, tmp_path):
  (_, header), _ = _mhd_and_raw(tmp_path)
  _refused(
    server, header.replace(b'scan.raw', b'\xfc\r\x1b'), 400, 'missing_raw'
  )


def test_a_scan_that_claims_more_than_it_has(server, tmp_path):
  (_, header), raw = _mhd_and_raw(tmp_path)
  for size, status, reason in (
    (b'9999 9999 9999', 400, 'too_large'),
    (b'19 13 100', 400, 'truncated'),
    (b'-19 -13 10', 400, 'unreadable'),
  ):
    changed = header.replace(b'DimSize = 19 13 10', b'DimSize = ' + size)
    assert changed != header
    content = _zip([('scan.mhd', changed), raw])
    _refused(server, content, status, reason)


def test_a_compressed_bomb(server, tmp_path):
  # 1 MB of voxels in a few KB; the limit is one voxel for 4 of 2 MiB.
  size = (128, 128, 64)
  path = str(tmp_path / 'scan.nii.gz')
  hu = np.zeros(size, np.int16)
  reader.write_scan(path, hu, geometry.Geometry(size))
  with open(path, 'rb') as file:
    _refused(server, file.read(), 413, 'wanted at most 524288')


@pytest.mark.parametrize(
  ('content', 'status', 'reason'),
  [
    (b'', 415, 'is not a scan'),
    (b'text', 415, 'is not a scan'),
    (pickle.dumps([1]), 415, 'is not a scan'),
    (gzip.compress(b'text'), 400, 'scan.nii.gz'),
    (b'NRRD0004\n', 400, 'scan.nrrd'),
    (b'ObjectType = Image\n', 400, 'MetaImage'),
    (b'1' * (2 << 20), 413, 'at most 1048576 bytes'),
  ],
  ids=range(7),
)
def test_files_that_are_no_scans(server, content, status, reason):
  _refused(server, content, status, reason)


def test_a_body_of_unknown_length_has_a_limit(server):
  answer = _send(server, (b'1' * 65536 for _ in range(32)))
  assert answer.status_code == 413, answer.text
  assert not server.left_over()


@pytest.mark.parametrize('kind', ['multipart/form-data', 'application/json'])
def test_content_types(server, kind):
  headers = {'content-type': kind}
  _refused(server, b'1', 415, 'wanted application/octet-stream', **headers)


@pytest.mark.parametrize('stride', ['', '1,2', '0,1,1', '9,6,4', 'a,b,c', 'é'])
def test_strides(server, tmp_path, stride):
  answer = _send(server, b'1', f'?stride={stride}')
  assert answer.status_code == 400
  assert answer.json()['error'].startswith('stride is')


def test_a_stride_that_makes_too_many_cubes(server, tmp_path):
  path = _write(tmp_path, '.mha')
  with open(path, 'rb') as file:
    answer = _send(server, file.read(), '?stride=1,1,1')
  assert answer.status_code == 400
  assert 'into 672 cubes, wanted at most 600' in answer.json()['error']


def test_scans_that_are_no_ct(server, tmp_path):
  path = _write(tmp_path, '.mha', (7, 13, 10))
  with open(path, 'rb') as file:
    _refused(server, file.read(), 400, 'too_small')
  reader.write_scan(path, np.zeros(_SIZE, np.int16), geometry.Geometry(_SIZE))
  with open(path, 'rb') as file:
    _refused(server, file.read(), 400, 'not_ct_range')


def test_a_model_of_another_name(server):
  answer = httpx.post(server.url + _PATH.replace('transvw', 'no'), content=b'1')
  assert answer.status_code == 404
