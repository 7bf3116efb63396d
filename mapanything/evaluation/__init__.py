"""The worth of predictions: metrics (pure NumPy), one scene's figures, the tables and pictures of many."""
