"""The bundle: one published version of a student as a directory, its manifest, and its verified reading."""
