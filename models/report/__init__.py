"""The report card: what a person reads before promoting a version."""
