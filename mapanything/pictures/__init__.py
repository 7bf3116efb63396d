"""Pictures: what is in them (scenes), and how they are drawn (render, plots, overlay). None of it needs a display."""
