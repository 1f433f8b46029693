"""control_node as a real process over DDS: commands, lockstep, episodes, recovery, conflicts."""

import itertools
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="needs ROS 2")

import rclpy
from control_bench import DT, ROBOT, Bench, without_repeats
from lifecycle_msgs.msg import Transition as LifecycleTransition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters

from aloe_core import topics
from aloe_core.chunk import ActionChunk as Chunk
from aloe_core.messages import chunk_msg, joint_state_msg, ros_make, stamp_to_ns
from aloe_core.robot import robot_file
from aloe_core.supervisor import ros_arguments
from aloe_core.vocabulary import EventType, Mode, Outcome, SafetyReason, SafetyState
from aloe_msgs.msg import ChunkRequest, EpisodeEvent
from aloe_robot.nodes.control_node import ControlNode


@pytest.fixture
def bench(ros_domain):
    bench = Bench()
    yield bench
    bench.close()


LOCKSTEP = {"robot": "aloha_sim", "tick_source": "joint_states", "max_policy_wait": 100.0}


def start(start_node, bench, **parameters):
    process = start_node("aloe_robot", "control_node", {**LOCKSTEP, **parameters})
    process.wait_for("controlling robot 'aloha_sim'")
    bench.connect()
    return process


def test_an_episode_in_lockstep(start_node, bench):
    start(start_node, bench)
    # Idle: a hold command per tick, both arms, device order; the same stamp again is not another tick.
    state = bench.tick(1)
    assert list(state.mode) == [Mode.IDLE] * 2
    assert state.episode_id == ""
    bench.spin_until(lambda: bench.heard["/left_controller/commands"], "a hold command")
    assert list(bench.heard["/left_controller/commands"][-1].data) == list(ROBOT.home[:7])
    bench.publish_joints(1)
    bench.spin_for(0.3)
    assert len(bench.heard[topics.CONTROL_STATE]) == 1

    # The start shows in the control state at once, while no joint state arrives.
    bench.begin(tick=1)

    # Without its chunk a tick does not end.
    bench.publish_joints(2)
    bench.spin_until(lambda: bench.heard[topics.CHUNK_REQUEST], "a request")
    request = bench.heard[topics.CHUNK_REQUEST][0]
    assert (request.reason, request.instruction, stamp_to_ns(request.header.stamp)) == (
        ChunkRequest.REASON_START,
        "do it",
        2 * DT,
    )
    bench.spin_for(0.3)
    assert stamp_to_ns(bench.heard[topics.CONTROL_STATE][-1].header.stamp) == DT
    bench.answer(request, chunk_id=1)
    bench.spin_until(lambda: stamp_to_ns(bench.heard[topics.CONTROL_STATE][-1].header.stamp) == 2 * DT, "tick 2")

    for tick in range(3, 40):
        state = bench.tick(tick)
        assert list(state.mode) == [Mode.POLICY] * 2
    assert [r.reason for r in without_repeats(bench.heard[topics.CHUNK_REQUEST])] == [
        ChunkRequest.REASON_START,
        ChunkRequest.REASON_REFILL,
    ]
    bench.publish_event(EventType.STOPPED, outcome=Outcome.SUCCESS)
    bench.spin_until(lambda: len(bench.heard[topics.TRANSITION]) == 38, "all transitions")
    transitions = bench.heard[topics.TRANSITION]
    assert [t.step for t in transitions] == list(range(38))
    assert [t.terminated for t in transitions] == [False] * 37 + [True]
    assert transitions[-1].reward == 0
    row = np.float32(ROBOT.home + 0.01 * 7 / 50 * ~ROBOT.gripper_mask)
    assert np.allclose(transitions[7].executed, row, atol=0)
    bench.spin_until(lambda: not bench.heard[topics.CONTROL_STATE][-1].episode_id, "the end shows in the control state")


def test_partial_joint_states_make_one_tick(start_node, bench):
    start(start_node, bench)
    left, right = ROBOT.action_names[:7], ROBOT.action_names[7:]
    bench.publish_joints(1, names=left)
    bench.spin_for(0.3)
    assert not bench.heard[topics.CONTROL_STATE]
    bench.publish_joints(1, names=right)
    bench.spin_until(lambda: bench.heard[topics.CONTROL_STATE], "a tick")
    bench.publish_joints(2, names=right)
    bench.publish_joints(2, names=left)
    bench.spin_until(lambda: len(bench.heard[topics.CONTROL_STATE]) == 2, "the next tick")


def test_a_silent_policy_is_given_up(start_node, bench):
    process = start(start_node, bench, max_policy_wait=0.5)
    bench.begin()
    state = bench.tick(1, answer=False)
    assert list(state.mode) == [Mode.HOLD] * 2
    assert state.starved_ticks == 1
    process.wait_for("no answer to chunk request 1")


def test_a_request_whose_answer_was_lost_comes_again_unchanged(start_node, bench):
    start(start_node, bench)
    bench.begin()
    bench.publish_joints(1)
    requests = bench.heard[topics.CHUNK_REQUEST]
    bench.spin_until(lambda: len(requests) >= 2, "the request comes again")
    assert requests[0] == requests[1]
    assert not any(s.starved_ticks for s in bench.heard[topics.CONTROL_STATE]), "the tick waits"
    bench.answer(requests[1], chunk_id=1)
    bench.answer(requests[1], chunk_id=1)  # whoever heard both answers both
    for tick in range(2, 10):
        assert list(bench.tick(tick).mode) == [Mode.POLICY] * 2
    assert bench.heard[topics.CONTROL_STATE][-1].discard_reason == "it has come before"
    assert bench.safety.state == SafetyState.OK


def test_emergency_stop_and_reset(start_node, bench):
    start(start_node, bench)
    bench.begin()
    bench.tick(1)
    assert bench.call(topics.EMERGENCY_STOP).success
    bench.spin_until(lambda: bench.safety.state == SafetyState.STOPPED, "the stop is told")
    state = bench.tick(2)
    assert list(state.mode) == [Mode.STOPPED] * 2
    assert bench.safety.reason == SafetyReason.EMERGENCY_STOP
    assert bench.call(topics.RESET_SAFETY).success
    state = bench.tick(3)
    assert list(state.mode) == [Mode.POLICY] * 2
    assert bench.heard[topics.CHUNK_REQUEST][-1].reason == ChunkRequest.REASON_RELEASE
    assert bench.safety.counters[SafetyReason.EMERGENCY_STOP] == 1


def test_a_killed_node_resumes_the_episode_on_hold(start_node, bench):
    first = start(start_node, bench)
    bench.begin()
    for tick in range(1, 6):
        bench.tick(tick)
    first.close()
    bench.heard[topics.SAFETY_STATUS].clear()
    bench.heard[topics.CONTROL_STATE].clear()
    second = start(start_node, bench)  # DDS still believes in the first one: no conflict, for it says nothing
    second.wait_for("resuming episode 'e1'")
    bench.spin_until(lambda: bench.joints.get_subscription_count() == 2, "joint states are heard again")
    bench.spin_until(lambda: bench.chunks.get_subscription_count() == 2, "chunks are heard again")
    states = bench.heard[topics.CONTROL_STATE]
    bench.spin_until(lambda: states and states[-1].episode_id == "e1", "the episode is known again")
    requests = len(bench.heard[topics.CHUNK_REQUEST])
    state = bench.tick(100)
    assert state.step == 100
    assert list(state.mode) == [Mode.POLICY] * 2
    assert bench.heard[topics.CHUNK_REQUEST][requests].reason == ChunkRequest.REASON_START
    for tick in range(101, 140):
        assert list(bench.tick(tick).mode) == [Mode.POLICY] * 2
    assert bench.safety.state == SafetyState.OK


def test_two_control_nodes_for_one_arm_stop(start_node, bench):
    first = start(start_node, bench)
    bench.tick(1)
    assert bench.safety.state == SafetyState.OK
    services = {name: f"other_control/{name}" for name in (topics.RESET_SAFETY, topics.EMERGENCY_STOP)}
    second = start_node("aloe_robot", "control_node", LOCKSTEP, name="other_control", remap=services)
    ticks = itertools.count(2)
    timer = bench.node.create_timer(DT / 1e9, lambda: bench.publish_joints(next(ticks)))
    bench.spin_until(
        lambda: all("command_conflict" in process.output for process in (first, second)), "both nodes notice"
    )
    assert "/other_control also commands /left_controller/commands; stop one of the two" in first.output
    assert "/control_node also commands /left_controller/commands; stop one of the two" in second.output
    bench.spin_until(lambda: bench.safety.reason == SafetyReason.COMMAND_CONFLICT, "the status names it")
    assert not bench.call(topics.RESET_SAFETY).success, "as long as the other one is there"
    timer.cancel()


def test_the_timer_ticks_without_new_joint_states(start_node, bench):
    process = start_node("aloe_robot", "control_node", {"robot": "aloha_sim"})
    process.wait_for("a timer at 50 Hz")
    bench.connect()
    message = joint_state_msg(
        ros_make, bench.node.get_clock().now().nanoseconds, ROBOT.action_names, ROBOT.home, np.zeros(14)
    )
    bench.joints.publish(message)
    bench.spin_until(lambda: len(bench.heard[topics.CONTROL_STATE]) > 20, "ticks")
    bench.spin_until(lambda: bench.safety.state == SafetyState.STOPPED, "stale joint states stop")
    assert bench.safety.reason == SafetyReason.STALE_OBSERVATION


def on_hardware(start_node, bench: Bench):
    process = start_node("aloe_robot", "control_node", {"robot": "aloha_sim"})
    process.wait_for("a timer at 50 Hz")
    bench.connect()
    return process


def test_on_hardware_an_episode_is_confirmed_by_its_first_tick(start_node, bench):
    on_hardware(start_node, bench)
    outside = ROBOT.home.copy()
    outside[0] = 4.0
    change = bench.measure(outside, left_out=1)
    bench.publish_event(EventType.STARTED)
    told = len(bench.heard[topics.DIAGNOSTICS])
    bench.spin_until(lambda: len(bench.heard[topics.DIAGNOSTICS]) > told + 2, "two reports")
    assert not bench.heard[topics.CONTROL_STATE], "a joint is not measured"
    change(outside)
    bench.spin_until(lambda: bench.safety.state == SafetyState.STOPPED, "it cannot start from there")
    assert (bench.safety.reason, bench.safety.joint) == (SafetyReason.POSITION, "left_waist")
    assert "'left_waist' stands at 4.000, outside" in bench.safety.message
    assert not bench.call(topics.RESET_SAFETY).success
    assert not bench.heard["/left_controller/commands"]
    assert not bench.heard[topics.CONTROL_STATE]
    change(ROBOT.home)
    states = bench.heard[topics.CONTROL_STATE]
    bench.spin_until(lambda: states and states[-1].episode_id == "e1", "the episode ticks")
    bench.spin_until(lambda: bench.call(topics.RESET_SAFETY).success, "the stop is taken back")
    bench.spin_until(lambda: list(states[-1].mode) == [Mode.HOLD] * 2, "it waits for the policy")


def test_a_reactivated_node_starts_where_the_arm_is_then(start_node, bench):
    on_hardware(start_node, bench)
    change = bench.measure(ROBOT.home)
    commands = bench.heard["/left_controller/commands"]
    bench.spin_until(lambda: commands, "commands")

    def turn(transition: int) -> None:
        fields = {"transition": LifecycleTransition(id=transition)}
        assert bench.call("control_node/change_state", ChangeState, **fields).success

    turn(LifecycleTransition.TRANSITION_DEACTIVATE)
    moved = ROBOT.home.copy()
    moved[0] += 0.8
    change(moved)
    bench.spin_for(1.0)
    commands.clear()
    turn(LifecycleTransition.TRANSITION_ACTIVATE)
    bench.spin_until(lambda: commands, "commands again")
    assert commands[0].data[0] == pytest.approx(moved[0])


def test_a_trajectory_is_stamped_with_its_tick_however_old_the_joint_states_are(ros_domain, tmp_path: Path):
    description = yaml.safe_load(robot_file("aloha_sim").read_text())
    description["arms"][0]["output"] |= {"type": "joint_trajectory", "topic": "/left_arm/joint_trajectory"}
    file = tmp_path / "trajectories.yaml"
    file.write_text(yaml.safe_dump(description))
    rclpy.init(args=ros_arguments(parameters=[{"robot": str(file), "autostart": False}]))
    node = ControlNode()
    try:
        node.configure()
        sent = {}
        # The arm is led away by hand, so that commands follow it; its joint states are 30 ms and 10 ms old in turn.
        led = ROBOT.home + 1.5 * (np.arange(ROBOT.action_dim) == 0)
        for tick in range(100, 150):
            now_ns = tick * DT
            pose, age_ns = led if tick > 100 else ROBOT.home, (30, 10)[tick % 2] * 10**6
            node._joints.add(now_ns - age_ns, ROBOT.action_names, ROBOT.to_device(pose))
            node._begin(now_ns)
            node._finish()
            if "/left_arm/joint_trajectory" in node._sent:
                sent[now_ns] = stamp_to_ns(node._sent["/left_arm/joint_trajectory"].header.stamp)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    assert len(sent) > 1
    assert list(sent) == list(sent.values())


def test_messages_that_make_no_sense_do_not_end_the_node(start_node, bench):
    process = start(start_node, bench)
    bench.publish_event(EventType.STARTED, episode="")
    process.wait_for("without an id")
    bench.begin()
    bench.tick(1)
    chunk = Chunk(DT, np.zeros((5, 14), np.float32), DT, 9)
    message = chunk_msg(ros_make, chunk, ROBOT)
    message.camera_names = ["overhead"]
    bench.chunks.publish(message)
    process.wait_for("chunk 9 has 1 camera names but 0 camera stamps")
    bench.events.publish(EpisodeEvent(event=int(EventType.STOPPED), episode_id="e1", outcome=99))
    process.wait_for("unknown outcome 99")
    bench.spin_until(lambda: not bench.heard[topics.CONTROL_STATE][-1].episode_id, "the episode ends all the same")
    assert process.returncode is None


def test_an_end_is_heard_that_another_event_follows_at_once(start_node, bench):
    process = start(start_node, bench)
    bench.begin()
    bench.tick(1)
    process.send(signal.SIGSTOP)
    bench.publish_event(EventType.STOPPED, outcome=Outcome.SUCCESS)
    bench.publish_event(EventType.LABELLED, outcome=Outcome.FAILURE)
    bench.spin_for(0.5)
    process.send(signal.SIGCONT)
    bench.spin_until(lambda: not bench.heard[topics.CONTROL_STATE][-1].episode_id, "the episode ends")
    bench.spin_until(lambda: bench.heard[topics.TRANSITION], "the last transition")
    assert bench.heard[topics.TRANSITION][-1].reward == 0, "with the outcome of STOPPED"


def test_a_running_node_refuses_parameters(start_node, bench):
    start(start_node, bench)
    values = [
        Parameter(name="execute_steps", value=ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=-7)),
        Parameter(name="robot", value=ParameterValue(type=ParameterType.PARAMETER_STRING, string_value="x")),
    ]
    results = bench.call("control_node/set_parameters", SetParameters, parameters=values).results
    assert not any(r.successful for r in results)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"robot": "no_such_robot"}, "unknown robot 'no_such_robot'"),
        ({"tick_source": "moon"}, "'tick_source': 'moon' is not one of: timer, joint_states"),
        ({"execution_mode": "fast"}, "execution_mode: 'fast' is not one of"),
        ({"policy_latency": "soon"}, "parameter 'policy_latency': 'soon' is not of type float"),
        ({"max_policy_wait": 0}, "'max_policy_wait': 0.0 is not a number of seconds above 0"),
        ({"wait_for_teleop": 1}, "parameter 'wait_for_teleop': 1 is not of type bool"),
        ({"robot": 7}, "parameter 'robot': 7 is not of type str"),
    ],
)
def test_bad_parameters_are_named(start_node, parameters, sentence):
    process = start_node("aloe_robot", "control_node", parameters)
    process.wait_for(sentence)
    assert process.wait() == 1
    assert "Traceback" not in process.output
