"""Programs that only developers run: benchmarks, locks, lint, the image."""
