"""Write a policy of your own and drive the simulated robot with it.

    .venv/bin/python examples/03_custom_policy.py

A policy turns an observation into a chunk: H rows of joint targets, row 0 for the time of the observation. This one waves the left arm; what it asks for is
blended, limited and recorded like the chunks of a learned one.
"""

import tempfile
from pathlib import Path

import numpy as np

from aloe_core.bag_reader import read_episode
from aloe_core.observation import Observation
from aloe_core.robot import load_robot
from aloe_robot.rollout import Lockstep


class Wave:
    """Turns the left wrist to and fro, and leaves everything else where it is."""

    version = "wave"
    horizon = 50
    cameras: tuple[str, ...] = ()  # it looks at joint positions only
    image_size = None
    uses_task_state = False

    def __init__(self, joint: int, control_rate_hz: float, amplitude: float = 0.4, frequency: float = 0.5) -> None:
        """`joint`: index in action order; `amplitude` [rad], `frequency` [Hz]."""
        self.joint, self.rate, self.amplitude, self.frequency = joint, control_rate_hz, amplitude, frequency
        self.rest: np.ndarray | None = None

    def propose(
        self,
        observation: Observation,
        generator: np.random.Generator,
        prefix: np.ndarray | None = None,
        prefix_steps: int = 0,
    ) -> np.ndarray:
        """A chunk float32 `[H, A]`."""
        if self.rest is None:
            self.rest = observation.state.copy()
        chunk = np.tile(self.rest, (self.horizon, 1)).astype(np.float32)
        time_s = observation.stamp_ns * 1e-9 + np.arange(self.horizon) / self.rate
        chunk[:, self.joint] += self.amplitude * np.sin(2 * np.pi * self.frequency * time_s)
        return chunk


def main() -> None:
    """Let the robot wave, and read from the bag how far."""
    robot = load_robot("aloha_sim")
    joint = robot.action_names.index("left_wrist_rotate")
    lockstep = Lockstep(robot, "transfer_cube", Wave(joint, robot.control_rate_hz))
    with tempfile.TemporaryDirectory() as folder:
        result = lockstep.run(seed=0, time_limit=4.0, bags=Path(folder))
        assert result.bag is not None
        angle = read_episode(result.bag).state[:, joint]
    print(f"{result.steps} ticks, {result.outcome.name}: waving is not handing over a cube")
    print(f"{robot.action_names[joint]} went from {angle.min():.2f} to {angle.max():.2f} rad")


if __name__ == "__main__":
    main()
