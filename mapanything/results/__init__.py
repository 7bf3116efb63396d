"""Results on disk: what is written of predictions, and how it is read again. No torch here."""
