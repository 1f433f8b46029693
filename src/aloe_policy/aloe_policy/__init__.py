"""Observation to action chunk: networks, adapters, training."""

__version__ = "0.1.0"
