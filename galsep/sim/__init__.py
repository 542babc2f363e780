"""Simulated scenes, drawn with GalSim."""
