"""The way from images to predictions, and from predictions to files."""
