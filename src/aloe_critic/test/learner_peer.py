"""How a test asks a learner in another process: what is said before two nodes have discovered each other is lost, also an answer."""

import time

from aloe_msgs.action import ImprovePolicy


def meet(client, until):
    """Gives the learner goals that it refuses until it has answered, so that neither a goal nor its result is lost after that.

    Args:
        client: the `ActionClient`.
        until: spins until a condition holds.
    """
    until(client.server_is_ready)
    handle = insist(lambda: client.send_goal_async(ImprovePolicy.Goal(method="ppo")), until)
    result = insist(handle.get_result_async, until).result
    assert result.error_code == ImprovePolicy.Goal.BAD_REQUEST


def insist(ask, until):
    """What is answered to the first, or to a later, of several times asked; also where DDS goes on believing in a killed server for a while."""
    asked, began = [], time.monotonic()

    def answered():
        if time.monotonic() > began + 5 * len(asked):
            asked.append(ask())
        return any(a.done() for a in asked)

    until(answered)
    return next(a.result() for a in asked if a.done())
