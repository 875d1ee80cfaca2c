"""Few-shot tasks: batches of them, and the stream that they come from."""
