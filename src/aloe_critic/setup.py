from setuptools import find_packages, setup

package_name = "aloe_critic"

setup(
    name=package_name,
    version="0.1.0",
    description="Replay, action-chunk critic, policy improvement, off-policy evaluation and reports",
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
        "aloe_policy==0.1.0",
        "numpy>=1.26,<3",
        "torch>=2.6,<3",
        "safetensors>=0.4,<1",
        "accelerate>=1.0,<2",
        "matplotlib>=3.8,<4",
        "tensorboard>=2.17,<3",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "rerun": ["rerun-sdk>=0.39,<1"],
    },
    entry_points={
        "console_scripts": [
            "learner_node = aloe_critic.nodes.learner_node:main",
            "critic_node = aloe_critic.nodes.critic_node:main",
        ],
        "aloe.commands": [
            "ingest = aloe_critic.commands.ingest:ingest",
            "improve = aloe_critic.commands.improve:improve",
            "learn = aloe_critic.commands.learn:learn",
            "demo = aloe_critic.commands.demo:demo",
            "ope = aloe_critic.commands.ope:ope",
            "report = aloe_critic.commands.report:report",
            "replay = aloe_critic.commands.replay:replay",
            "bags.to-rerun = aloe_critic.commands.to_rerun:to_rerun",
            "bags.from-here = aloe_critic.commands.from_here:from_here",
        ],
        "aloe.policies": [
            "recap = aloe_critic.methods.recap:load_policy",
            "best_of_n = aloe_critic.best_of_n:load_policy",
        ],
    },
)
