"""The offline half: makes students from teachers. Needs the `offline` extra (torch and friends)."""
