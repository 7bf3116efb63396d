"""Benchmarks: ratios to a plain reference in the same run."""
