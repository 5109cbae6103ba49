"""Compression passes: int8 graphs with static scales, int8 token tables, training for int8, and their receipts."""
