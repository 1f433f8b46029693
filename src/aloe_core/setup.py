from setuptools import find_packages, setup

package_name = "aloe_core"

setup(
    name=package_name,
    version="0.1.0",
    description="Vocabulary of ALOE for ROS 2: robot description, observations, action chunks, episodes, bags and the `aloe` command line",
    maintainer="ALOE for ROS 2 maintainers",
    maintainer_email="maintainers@aloe-ros2.example",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(exclude=["test", "test.*"]),
    package_data={package_name: ["py.typed", "interfaces/*/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
    ],
    zip_safe=True,
    install_requires=[
        "setuptools",
        "numpy>=1.26,<3",
        "PyYAML>=6.0,<7",
        "pydantic>=2.8,<3",
        "tyro>=0.9,<2",
        "rosbags>=0.10,<0.12",
        "mcap>=1.2,<2",
        "opencv-python-headless>=4.10,<6",
        "matplotlib>=3.7,<4",
        "zstandard>=0.22,<1",
        "lz4>=4.3,<5",
    ],
    entry_points={
        "console_scripts": [
            "aloe = aloe_core.cli:main",
        ],
        "aloe.commands": [
            "up = aloe_core.commands.up:up",
            "bags.show = aloe_core.commands.bags:show",
            "bags.recover = aloe_core.commands.bags:recover",
            "bag.recover = aloe_core.commands.bags:recover",  # of one bag, as people type it
            "bags.verify = aloe_core.commands.bags:verify",
        ],
    },
)
