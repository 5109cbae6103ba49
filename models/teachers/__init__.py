"""Teachers: loading one, fine-tuning it to a task, and its labels, cached by content."""
