"""Distillation: the objectives, and training a student on a transfer set the teacher labelled."""
