"""Faults that are injected: what is there afterwards is whole, and what was done is not lost."""
