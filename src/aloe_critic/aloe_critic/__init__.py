"""Replay, chunk critic, policy improvement, off-policy evaluation."""

__version__ = "0.1.0"
