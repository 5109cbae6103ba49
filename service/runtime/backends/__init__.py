"""Session backends: each loads one stage graph and runs it."""
