"""Perturbations of cubes for the restoration task."""
