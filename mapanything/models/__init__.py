"""The MapAnything network: architecture, weights, and what comes out of it."""
