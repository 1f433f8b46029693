"""The human in the loop: SpaceMouse, teleoperation, episodes, recording."""

__version__ = "0.1.0"
