"""Metrics, baselines, and trainings that are compared."""
