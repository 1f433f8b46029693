"""The graph of real processes and the lockstep roll-out give the same episode, tick by tick and bit by bit, on a busy machine too.

The policy draws its chunks at random; the lockstep episode is the first of its process, those of the graph are not.
"""

import multiprocessing
import os

import numpy as np
import pytest
import rclpy
from random_policy import save_random_policy

from aloe_core import topics
from aloe_core.bag_reader import read_episode
from aloe_core.policy import load_policy
from aloe_core.robot import load_robot
from aloe_core.vocabulary import Outcome
from aloe_intervention.nodes.episode_client import EpisodeClient
from aloe_msgs.msg import Transition
from aloe_robot.control.config import ControlConfig
from aloe_robot.rollout import Lockstep

LATENCY = 0.1  # [s] simulated inference time: chunks arrive while the arms move
LIMIT = 1.6  # [s]


def lockstep_episode(policy, folder, seed, name):
    robot = load_robot("aloha_sim")
    control = ControlConfig(policy_latency=LATENCY)
    lockstep = Lockstep(robot, "transfer_cube", load_policy(str(policy), robot), control)
    return read_episode(lockstep.run(seed, time_limit=LIMIT, bags=folder, episode_id=name).bag)


@pytest.fixture
def policy(tmp_path):
    return save_random_policy(tmp_path / "policy")


@pytest.fixture
def graph(start_node, tmp_path, policy):
    sim_time = {"use_sim_time": True}
    patience = {
        "ready_timeout": 100.0,
        "fault_timeout": 100.0,
    }  # [s] wall time: nobody is given up, however busy the machine is
    start_node("aloe_robot", "sim_node", {"cameras": False, "real_time_factor": 0.0})
    start_node(
        "aloe_robot",
        "control_node",
        sim_time | {"tick_source": "joint_states", "policy_latency": LATENCY, "max_policy_wait": 100.0},
    )
    start_node("aloe_policy", "policy_node", sim_time | {"policy": str(policy), "max_wait": 100.0})
    start_node(
        "aloe_intervention",
        "episode_node",
        sim_time
        | patience
        | {"simulator": True, "require_recorder": False, "require_policy": True, "bags": str(tmp_path)},
    )
    rclpy.init()
    client = EpisodeClient()
    client.transitions = []
    client.create_subscription(Transition, topics.TRANSITION, client.transitions.append, 1000)
    client.wait_until_ready(100)
    while not client.count_publishers(topics.TRANSITION):
        rclpy.spin_once(client, timeout_sec=0.1)
    client.run("transfer_cube", 0, 0.2, 100, recorded=False, episode_id="first")  # by its end everybody hears everybody
    yield client
    client.destroy_node()
    rclpy.try_shutdown()


def graph_episode(client, seed, name):
    result = client.run("transfer_cube", seed, LIMIT, 100, recorded=False, episode_id=name)
    mine = []
    while not (mine and (mine[-1].truncated or mine[-1].terminated)):
        rclpy.spin_once(client, timeout_sec=0.1)
        mine = [t for t in client.transitions if t.episode_id == name]
    return result, mine


def burn(stop):
    while not stop.is_set():
        sum(range(10_000))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_graph_equals_lockstep_whatever_the_load(graph, policy, tmp_path):
    stop = multiprocessing.get_context("spawn").Event()
    load = [multiprocessing.get_context("spawn").Process(target=burn, args=(stop,)) for _ in range(2 * os.cpu_count())]
    for name, busy in (("idle", False), ("busy", True)):
        expected = lockstep_episode(policy, tmp_path / "lockstep", 3, name)
        assert not expected.problems
        if busy:
            for process in load:
                process.start()
        try:
            result, transitions = graph_episode(graph, 3, name)
        finally:
            stop.set() if busy else None
        assert result.outcome == expected.outcome == Outcome.TIMEOUT
        assert [t.step for t in transitions] == expected.step.tolist()
        assert [t.chunk_step for t in transitions] == expected.chunk_step.tolist()
        np.testing.assert_array_equal(np.array([t.executed for t in transitions], np.float32), expected.executed)
        assert transitions[-1].truncated
        assert not any(t.truncated or t.terminated for t in transitions[:-1])
    for process in load:
        process.join()
