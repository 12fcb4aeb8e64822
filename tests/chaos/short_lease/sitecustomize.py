"""Python imports this at start where its folder is on PYTHONPATH: each process of the stack then has short leases.

With the product's lease of 30 s each kill -9 that leaves something in flight would make a test wait for 30 s.
"""

import os

if lease := os.environ.get("CHAOS_LEASE_S"):
    import shared.streams

    shared.streams.ACK_WAIT_S = int(lease)
    shared.streams.OWN_ACK_WAIT_S = int(lease)
    shared.streams.PLANNER_ACK_WAIT_S = int(lease)
    shared.streams.work_queue.__kwdefaults__["ack_wait_s"] = int(lease)
