"""Python imports this at start where its folder is on PYTHONPATH: each process of the stack then has short leases.

With the product's lease of 30 s each kill -9 that leaves something in flight would make a test wait for 30 s. So would
the product's patience with a worker that is told to end a step.
"""

import os

if lease := os.environ.get("CHAOS_LEASE_S"):
    import shared.streams

    shared.streams.ACK_WAIT_S = int(lease)
    shared.streams.OWN_ACK_WAIT_S = int(lease)
    shared.streams.PLANNER_ACK_WAIT_S = int(lease)
    shared.streams.work_queue.__kwdefaults__["ack_wait_s"] = int(lease)

if patience := os.environ.get("CHAOS_CANCEL_PATIENCE_S"):
    import shared.run_steps

    shared.run_steps.CANCEL_PATIENCE_S = int(patience)
