"""What touches the robot: cameras, simulator, chunk execution, arbitration, safety."""

__version__ = "0.1.0"
