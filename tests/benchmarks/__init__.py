"""Benchmarks: commands that print their table. None is a test."""
