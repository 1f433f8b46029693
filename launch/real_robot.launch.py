"""A real bimanual robot: `ros2 launch aloe_bringup real_robot.launch.py` (use_mock_hardware:=true: without one).

The graph and its arguments are in real_robot.launch.yaml.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource


def generate_launch_description() -> LaunchDescription:
    """Include the YAML file beside this one."""
    yaml = Path(__file__).with_suffix(".yaml")
    return LaunchDescription([IncludeLaunchDescription(AnyLaunchDescriptionSource(str(yaml)))])
