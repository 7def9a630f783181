"""Drawing recorded once for batches of a shape, and replayed for the next of that shape."""
