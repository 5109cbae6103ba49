"""The refresh job: a recipe in, a published student out, one cached step at a time."""
