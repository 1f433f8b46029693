"""Read one intervention under the three protocols.

    .venv/bin/python examples/04_fragments.py

A policy drives for 6 ticks, a human takes the left arm over for 4, the policy gets it back for 3 and succeeds. Who drove is all a recording says; what
each stretch may teach is decided afterwards, and of that what does is up to the weights of the method.
"""

import numpy as np

from aloe_core.fragments import PROTOCOLS, chunk_stops, derive_fragments
from aloe_core.vocabulary import Outcome, Source

POLICY, HUMAN = Source.POLICY, Source.HUMAN
SOURCE = np.array([[POLICY, POLICY]] * 6 + [[HUMAN, POLICY]] * 4 + [[POLICY, POLICY]] * 3, np.uint8)  # [ticks, arms]


def main() -> None:
    """Print the fragments of the intervention under each protocol."""
    for protocol in PROTOCOLS:
        print(protocol)
        fragments = derive_fragments(SOURCE, Outcome.SUCCESS, protocol)
        for f in fragments:
            end = "terminal" if f.terminal else "cut" if f.truncated else "goes on"
            teaches = [name for name, does in (("policy", f.train_policy), ("critic", f.train_critic)) if does]
            print(
                f"    ticks {f.start:2} .. {f.stop - 1:2}  {f.source.name:6}  {f.outcome.name:10}  {end:8}  "
                f"may teach {' and '.join(teaches) or 'nothing'}"
            )
        stops = chunk_stops(SOURCE, fragments, protocol)
        reach = (stops.policy - np.arange(len(SOURCE))).tolist()
        print(f"    longest chunk for the policy from each tick: {reach}\n")


if __name__ == "__main__":
    main()
