"""From images to predictions, and predictions to files."""
