"""A recorded bag in shadow mode: `ros2 launch aloe_bringup replay.launch.py`.

The graph and its arguments are in replay.launch.yaml.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource


def generate_launch_description() -> LaunchDescription:
    """Include the YAML file beside this one."""
    yaml = Path(__file__).with_suffix(".yaml")
    return LaunchDescription([IncludeLaunchDescription(AnyLaunchDescriptionSource(str(yaml)))])
