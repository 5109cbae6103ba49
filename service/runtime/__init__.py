"""From texts to raw exit outputs and answers, synchronously: tokenizing, sessions, stages, heads."""
