"""The drawn anatomy of the synthetic patients."""
