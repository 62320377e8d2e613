"""Training: images, batches, steps, checkpoints, and the loop over epochs."""
