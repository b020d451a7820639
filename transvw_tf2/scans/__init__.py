"""CT scans in NumPy and SimpleITK: files, geometry, layouts, phantoms."""
