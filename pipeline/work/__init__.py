"""What a worker does with one run: train, evaluate, and the results of each."""
