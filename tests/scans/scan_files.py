"""Tiny scans for the tests of this folder."""

import os

import numpy as np
import SimpleITK as sitk

SIZE = (64, 65, 33)


def make_hu(size=SIZE, seed=0):
  """int16 [x, y, z], HU as in a chest: air to bone, no symmetry."""
  rng = np.random.default_rng(seed)
  hu = rng.integers(-1000, 400, size).astype(np.int16)
  hu[3:9, 20:30, 5:8] = 1200
  return hu


def write(path, hu, *, spacing=None, origin=None, direction=None, compress=0):
  """Writes an array [x, y, z, ...] with SimpleITK; returns the path."""
  image = sitk.GetImageFromArray(np.ascontiguousarray(hu.T))
  if spacing is not None:
    image.SetSpacing(spacing)
  if origin is not None:
    image.SetOrigin(origin)
  if direction is not None:
    image.SetDirection(np.ravel(direction).tolist())
  sitk.WriteImage(image, os.fspath(path), bool(compress))
  return os.fspath(path)


def write_meta(folder, hu, *, drop=(), **fields):
  """Writes x.mhd by hand, with fields replaced, and x.raw; returns x.mhd."""
  header = {
    'ObjectType': 'Image',
    'NDims': 3,
    'BinaryData': 'True',
    'BinaryDataByteOrderMSB': 'False',
    'CompressedData': 'False',
    'TransformMatrix': '1 0 0 0 1 0 0 0 1',
    'Offset': '0 0 0',
    'CenterOfRotation': '0 0 0',
    'ElementSpacing': '1 1 1',
    'DimSize': ' '.join(map(str, hu.shape)),
    'ElementType': 'MET_SHORT',
    **{key: value for key, value in fields.items() if key != 'ElementDataFile'},
    'ElementDataFile': fields.get('ElementDataFile', 'x.raw'),
  }
  lines = [f'{key} = {value}' for key, value in header.items()]
  (folder / 'x.mhd').write_text(
    '\n'.join(one for one in lines if one.split()[0] not in drop) + '\n'
  )
  (folder / 'x.raw').write_bytes(hu.tobytes(order='F'))
  return os.fspath(folder / 'x.mhd')


def write_series(
  folder,
  hu,
  *,
  uid='1.2.826.0.1.3680043.8.498.1',
  spacing=(0.7, 0.8, 2.5),
  origin=(-10.0, -20.0, -30.0),
  direction=None,
  skip=(),
  more_apart=0.0,
  intercept=-1024,
  slope=1,
  compressor=None,
):
  """Writes a DICOM series, its files named in no order; returns the folder."""
  os.makedirs(folder, exist_ok=True)
  direction = np.eye(3) if direction is None else np.asarray(direction)
  names = np.random.default_rng(3).permutation(hu.shape[2])
  writer = sitk.ImageFileWriter()
  writer.KeepOriginalImageUIDOn()
  if compressor:
    writer.SetCompressor(compressor)
    writer.UseCompressionOn()
  for k in range(hu.shape[2]):
    if k in skip:
      continue
    image = sitk.GetImageFromArray(np.ascontiguousarray(hu[:, :, k].T))
    image.SetSpacing(spacing[:2])
    along = spacing[2] * k + more_apart * max(0, k - hu.shape[2] // 2)
    position = np.asarray(origin) + direction[:, 2] * along
    for tag, value in {
      '0008|0016': '1.2.840.10008.5.1.4.1.1.2',
      '0008|0018': f'{uid}.{k + 1}',
      '0008|0060': 'CT',
      '0020|000d': f'{uid}.0',
      '0020|000e': uid,
      '0020|0013': str(k),
      '0020|0032': '\\'.join(f'{one:.6f}' for one in position),
      '0020|0037': '\\'.join(f'{one:.6f}' for one in direction[:, :2].T.flat),
      '0028|1052': str(intercept),
      '0028|1053': str(slope),
    }.items():
      image.SetMetaData(tag, value)
    writer.SetFileName(os.fspath(folder / f'{uid[-1]}_{names[k]:03d}.dcm'))
    writer.Execute(image)
  return os.fspath(folder)


def rotation(axis, degrees):
  """3x3 rotation matrix about an axis."""
  angle = np.deg2rad(degrees)
  i, j = [one for one in range(3) if one != axis]
  matrix = np.eye(3)
  matrix[i, i] = matrix[j, j] = np.cos(angle)
  matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
  return matrix
