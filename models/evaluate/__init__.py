"""Calibration of the exits, and everything that is measured about a student."""
