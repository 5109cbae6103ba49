"""The engine: one event loop that queues items, forms batches and runs them on slots."""
