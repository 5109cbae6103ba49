"""The recipe: everything that decides what a refresh makes, strictly read; one kind a task."""
