"""MapAnything for OPV2V: fine-tuning, export, evaluation and pictures with the same commands on every host."""

__version__ = "0.1.0"
