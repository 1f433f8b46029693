from setuptools import find_packages, setup

package_name = "aloe_robot"

setup(
    name=package_name,
    version="0.1.0",
    description="What touches the robot: cameras, simulator, action-chunk execution, arbitration and safety",
    maintainer="ALOE for ROS 2 maintainers",
    maintainer_email="maintainers@aloe-ros2.example",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(exclude=["test", "test.*"]),
    package_data={package_name: ["py.typed", "nodes/*.xml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
    ],
    zip_safe=True,
    install_requires=[
        "setuptools",
        "aloe_core==0.1.0",
        "numpy>=1.26,<3",
        "opencv-python-headless>=4.10,<6",
    ],
    extras_require={
        "sim": ["mujoco==3.8.1"],
    },
    entry_points={
        "console_scripts": [
            "camera_node = aloe_robot.nodes.camera_node:main",
            "sim_node = aloe_robot.nodes.sim_node:main",
            "control_node = aloe_robot.nodes.control_node:main",
            "mock_robot_node = aloe_robot.nodes.mock_robot_node:main",
        ],
        "aloe.commands": [
            "robot.show = aloe_robot.commands.robot:show",
        ],
        "aloe.policies": [
            "scripted = aloe_robot.expert:load_policy",
        ],
    },
)
