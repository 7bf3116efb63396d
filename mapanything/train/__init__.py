"""Training: losses, loop, optimiser, checkpoints."""
