"""What a run is: its settings, its key and its record; and the store, which holds runs by their keys."""
