"""Engines start workers; workers take runs from the store. Nothing of an engine is in a run's key."""
