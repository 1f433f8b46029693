"""Roll out a policy in lockstep: simulator, observation builder, policy and control loop in one process, without ROS.

    .venv/bin/python examples/02_roll_out_a_policy.py [POLICY]    (a name or checkpoint folder; by default the scripted expert)

The classes are those of the ROS graph, so a seed gives the same episode here and there.
"""

import sys

from aloe_core.policy import load_policy
from aloe_core.robot import load_robot
from aloe_core.statistics import success_text
from aloe_robot.control.config import ControlConfig
from aloe_robot.rollout import Lockstep

EPISODES = 3


def main(policy: str) -> None:
    """Roll the policy out and print how each episode ended."""
    robot = load_robot("aloha_sim")
    control = ControlConfig(execution_mode="latest", execute_steps=50 if policy == "scripted" else 25)
    lockstep = Lockstep(robot, "transfer_cube", load_policy(policy, robot), control)
    results = [lockstep.run(seed) for seed in range(EPISODES)]
    for result in results:
        print(f"seed {result.seed}: {result.outcome.name} after {result.duration_s:.1f} s of robot time")
        print(f"    starved in {result.starved_ticks} ticks, limited by the safety filter in {result.limited_ticks}")
    print("success", success_text(sum(r.success for r in results), EPISODES))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "scripted")
