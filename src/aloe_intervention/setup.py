from setuptools import find_packages, setup

package_name = "aloe_intervention"

setup(
    name=package_name,
    version="0.1.0",
    description="Human in the loop: SpaceMouse, teleoperation, episodes and labels, recording",
    maintainer="ALOE for ROS 2 maintainers",
    maintainer_email="maintainers@aloe-ros2.example",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(exclude=["test", "test.*"]),
    package_data={package_name: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
    ],
    zip_safe=True,
    install_requires=[
        "setuptools",
        "aloe_core==0.1.0",
        "aloe_robot==0.1.0",
        "numpy>=1.26,<3",
        "psutil>=5.9,<8",
        "rich>=13,<16",
    ],
    extras_require={
        "kinematics": ["pin>=3.0,<5", "qpsolvers>=4.4,<5", "daqp>=0.7,<1", "scipy>=1.10,<2"],
        "test": ["pyspacemouse>=2.0,<3"],
    },
    entry_points={
        "console_scripts": [
            "spacemouse_node = aloe_intervention.nodes.spacemouse_node:main",
            "teleop_node = aloe_intervention.nodes.teleop_node:main",
            "episode_node = aloe_intervention.nodes.episode_node:main",
            "recorder_node = aloe_intervention.nodes.recorder_node:main",
            "operator_node = aloe_intervention.nodes.operator_node:main",
        ],
        "aloe.commands": [
            "check = aloe_intervention.commands.check:check",
            "episodes = aloe_intervention.commands.episodes:episodes",
            "operate = aloe_intervention.commands.operate:operate",
            "bags.timeline = aloe_intervention.commands.timeline:timeline",
        ],
    },
)
