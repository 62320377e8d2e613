"""Engines start workers, and workers take runs from the store. No run's key depends on an engine."""
