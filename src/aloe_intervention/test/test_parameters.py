"""Parameters of the nodes: whole numbers where fractions are expected, wrong types by name, and nothing to be set on a running node."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from intervention_peer import node_here
from rclpy.node import Node
from rclpy.parameter import Parameter

from aloe_core.errors import AloeError
from aloe_intervention.nodes.episode_node import EpisodeNode
from aloe_intervention.nodes.operator_node import OperatorNode
from aloe_intervention.nodes.recorder_node import RecorderNode
from aloe_intervention.nodes.spacemouse_node import SpaceMouseNode
from aloe_intervention.nodes.teleop_node import TeleopNode
from aloe_robot.nodes.parameters import declare
from aloe_robot.nodes.sim_node import SimNode

NODES = [
    (EpisodeNode, "time_limit", {"fault_timeout": 60}),
    (RecorderNode, "min_free_gb", {"queue_mb": 5, "settle_timeout": 2}),
    (SimNode, "real_time_factor", {"cameras": False}),
    (TeleopNode, "max_wait", {"linear_speed": 1}),
    (OperatorNode, "max_wait", {"patience": 1}),
    (SpaceMouseNode, "rate", {"arms": ["left"], "dead_zone": 0}),
]


@pytest.mark.parametrize(("make", "number", "more"), NODES, ids=[make.__name__ for make, _, _ in NODES])
def test_whole_numbers_will_do_and_a_running_node_refuses_to_be_told(ros_domain, tmp_path, make, number, more):
    with node_here(make, bags=str(tmp_path / "bags"), **{number: 7}, **more) as node:
        assert node.get_parameter(number).value == 7
        for name, value in ((number, 8.0), ("robot", "other")):
            result = node.set_parameters([Parameter(name, value=value)])[0]
            assert not result.successful
            assert "read-only" in result.reason
    says = f"parameter '{number}': 'x' is not of type float"
    with pytest.raises(AloeError, match=says), node_here(make, bags=str(tmp_path / "b"), **{number: "x"}, **more):
        pass


@pytest.mark.parametrize(
    ("default", "given", "value"),
    [
        (1.5, 2, 2.0),
        (1.5, 2.5, 2.5),
        (1.5, True, None),
        (3, 4, 4),
        (3, 4.0, None),
        (True, False, False),
        (True, 0, None),
        ("a", "b", "b"),
        ("a", 5, None),
        (("a",), ["b", "c"], ("b", "c")),
        (("a",), [], ()),
        (("a",), [1], None),
        (("a",), "b", None),
        ((0.5,), [1, 2], (1.0, 2.0)),
    ],
)
def test_values_have_the_type_of_the_default(ros_domain, default, given, value):
    with node_here(lambda: Node("asked"), p=given) as node:
        if value is None:
            with pytest.raises(AloeError, match="parameter 'p': "):
                declare(node, "p", default)
            return
        found = declare(node, "p", default)
        assert (found, type(found)) == (value, type(value))
