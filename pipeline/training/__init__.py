"""What a training step is made of: images, batches, checkpoints."""
