"""Transferable Visual Words (TransVW) for TensorFlow 2.

Imports nothing, so that `transvw_tf2.scans` and `transvw_tf2.discovery` stay
free of TensorFlow.
"""

__version__ = '0.1.0'
