"""What a run is: its settings, its key, its record, and the store of runs that asks for it by key."""
