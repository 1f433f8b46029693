"""What the tests of replay share: a recorded roll-out of a small, untrained policy, and a small, untrained critic."""

from pathlib import Path

import numpy as np
import torch
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_types_from_msg

from aloe_core.messages import bag_make, compressed_image_msg, joint_state_msg, typestore
from aloe_core.policy import load_policy
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_critic.critic import CriticConfig
from aloe_critic.critic_file import CriticFacts, save_critic
from aloe_critic.methods import make_method
from aloe_policy.checkpoint import PolicySpec
from aloe_policy.flow import FlowConfig, FlowPolicy
from aloe_policy.normalisation import Normalisation
from aloe_robot.control.config import ControlConfig
from aloe_robot.rollout import Lockstep

ROBOT = load_robot("aloha_sim")
HORIZON = 20  # rows of a chunk
CRITIC_HORIZON = 10


def save_policy(folder, seed=0, cameras=(), image_size=None, objects=7):
    """A checkpoint: chunks around the home position, different for each observation and each draw."""
    torch.manual_seed(seed)
    home = torch.tensor(ROBOT.home).float()
    statistics = {"state": (home, torch.ones(14)), "action": (home, 0.02 * torch.ones(14))}
    if objects:
        statistics["object_state"] = (torch.zeros(7), torch.ones(7))
    spec = PolicySpec.of(ROBOT, HORIZON, cameras, image_size, objects)
    config = FlowConfig("transformer" if cameras else "mlp", width=32, layers=1, steps=2)
    FlowPolicy(spec, config, Normalisation(statistics)).save(folder, f"test-{seed}")
    return folder


def save_toy_critic(folder, policy_version, returns=(-10.0, 10.0), options=None, **inputs):
    """`critic.safetensors` in `folder`: judges the first rows of a chunk. `inputs`: fields of `CriticConfig`, by default the object state."""
    torch.manual_seed(1)
    inputs = inputs or {"object_dim": 7}
    config = CriticConfig(14, 14, CRITIC_HORIZON, width=32, layers=1, attention_heads=4, **inputs)
    method = make_method("aloe", config, options, returns)
    folder.mkdir(parents=True)
    facts = CriticFacts("aloe", config, options or {}, returns, 0.99, ROBOT.hash, policy_version)
    save_critic(folder / "critic.safetensors", method, facts)
    return folder


def record(bags, policy, seconds=1.0, seed=4, policy_seed=0, name="recorded"):
    """A bag of `policy` (checkpoint or name) in simulation, with chunks that come late."""
    control = ControlConfig(policy_latency=0.1, execute_steps=8)
    lockstep = Lockstep(ROBOT, "transfer_cube", load_policy(str(policy), ROBOT), control, seed=policy_seed)
    return lockstep.run(seed, time_limit=seconds, bags=Path(bags), episode_id=name).bag


def discovered(reliability):
    """What rosbag2 notes of a publisher: DDS does not tell it history and depth."""
    never = QosTime(9223372036, 854775807)
    unknown, automatic = QosHistory.UNKNOWN, QosLiveliness.AUTOMATIC
    return Qos(unknown, 0, reliability, QosDurability.VOLATILE, never, never, automatic, never, False)


def foreign_bag(folder, plugin=StoragePlugin.MCAP, seconds=1.2, drivers=2):
    """As `ros2 bag record` leaves it: joint states at 200 Hz, of one driver per arm or of one for both;
    one camera; a topic of a foreign type. All joints move at 0.5 rad/s.
    """
    store = typestore()
    foreign = get_types_from_msg("float32 celsius\n", "motor_msgs/msg/Temperature")
    store.register({k: v for k, v in foreign.items() if k not in store.fielddefs})
    begin = 1_700_000_000_000_000_000
    names, width = ROBOT.action_names, ROBOT.action_dim
    with Writer(folder, version=9, storage_plugin=plugin) as bag:

        def add(topic, type, reliability, publishers=1):
            profiles = [discovered(reliability)] * publishers
            return bag.add_connection(topic, type, typestore=store, offered_qos_profiles=profiles)

        reliable, best_effort = QosReliability.RELIABLE, QosReliability.BEST_EFFORT
        joints = add(ROBOT.joint_states_topic, "sensor_msgs/msg/JointState", reliable, drivers)
        camera = add("/overhead/image_raw/compressed", "sensor_msgs/msg/CompressedImage", best_effort)
        heat = add("/heat", "motor_msgs/msg/Temperature", reliable)
        image = SyntheticEpisode(ROBOT).jpeg
        for i in range(int(200 * seconds)):
            now = begin + i * 5_000_000
            device = ROBOT.to_device(np.full(width, 0.1) + 0.5 * 0.005 * i)
            for part in (slice(0, 7), slice(7, None)) if drivers == 2 else (slice(None),):
                message = joint_state_msg(bag_make, now, names[part], device[part])
                bag.write(joints, now + 300_000, store.serialize_cdr(message, joints.msgtype))
            if i % 8 == 2:
                message = compressed_image_msg(bag_make, now, "overhead", image("overhead", i))
                bag.write(camera, now + 400_000, store.serialize_cdr(message, camera.msgtype))
            if i % 50 == 0:
                message = store.types["motor_msgs/msg/Temperature"](celsius=40.0)
                bag.write(heat, now, store.serialize_cdr(message, heat.msgtype))
    for name in foreign:
        store.fielddefs.pop(name), store.types.pop(name)
    return begin
