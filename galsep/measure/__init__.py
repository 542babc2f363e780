"""Matching, metrics and photometry, pure on arrays."""
