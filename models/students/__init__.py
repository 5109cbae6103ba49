"""Students: the encoder cut at its exits, its trimmed vocabulary, and what it starts from."""
