"""HTTP: the native routes, the probes and the set of students they answer from."""
