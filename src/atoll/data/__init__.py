"""Real data sets, partitioners, batches, and the pinned packages that they are read from."""
