"""Data of the offline half: reading rows, cutting splits once and for good, and augmenting training texts."""
