"""The streams, buckets and work queues of Remit, made when they are missing; making them again changes nothing.

EVENTS is plain on purpose: on a stream that takes schedules, a client that may publish one subject can forge others.
TIMERS takes schedules and is written by engine services only; EVENTS sources what it fires.
"""

from typing import Any

from shared.age_limit import take_off_expired
from shared.bus import REQUEST_TIMEOUT_S, ApiError, Bus
from shared.catalogue import BUILT_IN
from shared.clock import parse_ns
from shared.errors import RemitError, Unavailable
from shared.subjects import (
    ARTIFACTS_BUCKET,
    CONFIG_BUCKET,
    EVENT_NOUNS,
    EVENTS,
    GOALS,
    MEMORY_BUCKET,
    SNAPSHOTS_BUCKET,
    TIMERS,
    step_dispatched_to,
    worker_consumer,
)

NS = 1_000_000_000
KV_HISTORY = 64  # the server's most; directives keep their history here
ACK_WAIT_S = 30  # the lease: a worker of somebody's own that is silent for so long has lost its step
OWN_ACK_WAIT_S = 10  # Remit's workers renew their lease three times in it
PLANNER_ACK_WAIT_S = 5  # planning takes milliseconds
PENDING_MAX = 20_000  # what may be out at a time where nobody has set a limit
DUPLICATES_S = 120  # longer than an appender repeats itself without a word from the server
STREAM_EXISTS = 10058
CONSUMER_EXISTS = 10148
CONSUMER_MISSING = 10014
NOT_CLUSTERED = 10074
TOO_FEW_NODES = 10005
PLANNER = "planner"  # the queue of goals
AT_ONCE = "noop"  # a task that a worker performs on the spot: while there is one, its queue is pulled
CLUSTER_VERSION_LEAST = (2, 14, 6)  # nodes of 2.14.3 tell different times at which a stream was made, each its own
REPLICAS = (1, 3, 5)  # an even number bears the loss of no more nodes than the odd one below it


def events(replicas: int) -> dict[str, Any]:
    return {
        "name": EVENTS,
        "subjects": [f"{noun}.>" for noun in EVENT_NOUNS],
        "storage": "file",
        "num_replicas": replicas,
        "deny_delete": True,
        "deny_purge": True,
        "allow_direct": True,
        "discard": "new",
        "sources": [{"name": TIMERS, "filter_subject": "timer.fired.>"}],
        # A stream with sources has no window unless it asks for one: a goal repeated for want of an ack was two runs.
        "duplicate_window": DUPLICATES_S * NS,
    }


def timers(replicas: int) -> dict[str, Any]:
    return {
        "name": TIMERS,
        "subjects": ["timer.at.>", "timer.fired.>"],
        "storage": "file",
        "num_replicas": replicas,
        "allow_direct": True,
        "allow_msg_schedules": True,
        "allow_msg_ttl": True,
    }


def bucket(name: str, replicas: int, *, history: int) -> dict[str, Any]:
    return {
        "name": f"KV_{name}",
        "subjects": [f"$KV.{name}.>"],
        "storage": "file",
        "num_replicas": replicas,
        "max_msgs_per_subject": history,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
        "discard": "new",
    }


def objects(name: str, replicas: int) -> dict[str, Any]:
    return {
        "name": f"OBJ_{name}",
        "subjects": [f"$O.{name}.C.>", f"$O.{name}.M.>"],
        "storage": "file",
        "num_replicas": replicas,
        "allow_rollup_hdrs": True,
        "allow_direct": True,
        "discard": "new",
    }


async def ensure(bus: Bus, replicas: int = 1) -> None:
    """Make every stream and the planner's queue. Any service may, at any time, together with others.

    Streams with fewer replicas than are asked for get more, and none gets fewer: one service that was started without
    the setting must not undo it. Work queues have as many as their stream, readers one, as they are made anew anyway.
    """
    if replicas not in REPLICAS:
        raise RemitError(f"REMIT_REPLICAS is {replicas}; it must be one of {', '.join(map(str, REPLICAS))}")
    if replicas > 1 and bus.server_version < CLUSTER_VERSION_LEAST:
        least = ".".join(map(str, CLUSTER_VERSION_LEAST))
        raise RemitError(f"{bus.server} is too old for a cluster: Remit needs nats-server {least} or newer there")
    try:
        await _ensure(bus, replicas)
    except ApiError as error:
        if error.code not in (NOT_CLUSTERED, TOO_FEW_NODES):
            raise
        asked = f"REMIT_REPLICAS={replicas} (--replicas) asks for streams on {replicas} NATS servers"
        if error.code == NOT_CLUSTERED:
            raise RemitError(
                f"{asked}, and {bus.server} is a single one: name a cluster's URLs, or leave it out"
            ) from None
        # It may be that the others are just starting, so whoever waits for NATS waits for this, too.
        raise Unavailable(f"{asked}, and the cluster has not so many with JetStream and room") from None


async def _ensure(bus: Bus, replicas: int) -> None:
    for config in (
        timers(replicas),
        events(replicas),
        bucket(CONFIG_BUCKET, replicas, history=KV_HISTORY),
        bucket(MEMORY_BUCKET, replicas, history=1),
        objects(ARTIFACTS_BUCKET, replicas),
        objects(SNAPSHOTS_BUCKET, replicas),
    ):
        try:
            await bus.api(f"STREAM.CREATE.{config['name']}", config)
        except ApiError as error:
            if error.code != STREAM_EXISTS:
                raise
            # It is there with other settings: made by an older Remit, or an operator's own limits. Add only what
            # this version cannot do without.
            await _add_to(bus, config)
    await planner_queue(bus)
    await take_off_expired(bus)


async def _add_to(bus: Bus, wanted: dict[str, Any]) -> None:
    found = (await bus.api(f"STREAM.INFO.{wanted['name']}"))["config"]
    missing = [subject for subject in wanted["subjects"] if subject not in found["subjects"]]
    if missing or found["num_replicas"] < wanted["num_replicas"]:
        found["subjects"] = [*found["subjects"], *missing]
        found["num_replicas"] = max(found["num_replicas"], wanted["num_replicas"])
        await bus.api(f"STREAM.UPDATE.{wanted['name']}", found)


async def work_queue(
    bus: Bus, durable: str, subjects: list[str], *, ack_wait_s: int = ACK_WAIT_S, pending_max: int | None = None
) -> None:
    """A durable consumer on EVENTS, from the stream's start: what waited for it is delivered."""
    config = {
        "durable_name": durable,
        "name": durable,
        "ack_policy": "explicit",
        "ack_wait": ack_wait_s * NS,
        "deliver_policy": "all",
        "max_deliver": -1,
        "max_ack_pending": pending_max or PENDING_MAX,
        "max_waiting": 512,
        "filter_subjects": subjects,
    }
    try:
        # "create", not "create or update": an operator's own ack_wait stays as it is.
        request = {"stream_name": EVENTS, "config": config, "action": "create"}
        await bus.api(f"CONSUMER.CREATE.{EVENTS}.{durable}", request)
    except ApiError as error:
        if error.code not in (CONSUMER_EXISTS, 10013):
            raise
        if pending_max is not None:
            await _set_pending_max(bus, durable, pending_max)


async def _set_pending_max(bus: Bus, durable: str, pending_max: int) -> None:
    found = (await bus.api(f"CONSUMER.INFO.{EVENTS}.{durable}"))["config"]
    if found.get("max_ack_pending") != pending_max:
        found["max_ack_pending"] = pending_max
        request = {"stream_name": EVENTS, "config": found, "action": "update"}
        await bus.api(f"CONSUMER.CREATE.{EVENTS}.{durable}", request)


async def planner_queue(bus: Bus) -> None:
    """The queue of goals; any number of planners pull from it."""
    await work_queue(bus, PLANNER, list(GOALS), ack_wait_s=PLANNER_ACK_WAIT_S)


async def worker_queue(bus: Bus, task: str, host: str | None = None, *, at_once: int | None = None) -> None:
    """The queue `worker-<task>` that anybody who performs the task pulls from; with `host`, the one of its own.

    `at_once`: so many steps are out at a time, in the whole fleet; the server holds it.
    """
    lease_s = ACK_WAIT_S if BUILT_IN.task(task) is None else OWN_ACK_WAIT_S
    durable = worker_consumer(task, host)
    await work_queue(bus, durable, [step_dispatched_to(task, host)], ack_wait_s=lease_s, pending_max=at_once)


async def pulled(bus: Bus, durable: str) -> bool:
    """Whether anybody waits for what comes to this queue; not so where there is no such queue."""
    try:
        return bool((await bus.api(f"CONSUMER.INFO.{EVENTS}.{durable}"))["num_waiting"])
    except ApiError as error:
        if error.code != CONSUMER_MISSING:
            raise
        return False


async def standing(bus: Bus, stream: str = EVENTS, *, timeout_s: float = REQUEST_TIMEOUT_S) -> tuple[str, int]:
    """When the stream was made, which tells one from another, and its newest sequence."""
    info = await bus.api(f"STREAM.INFO.{stream}", timeout_s=timeout_s)
    return str(info["created"]), int(info["state"]["last_seq"])


async def server_now_ns(bus: Bus) -> int:
    """The clock of the NATS server, which stamps the stream. What is compared with stamps goes by it."""
    return parse_ns(str((await bus.api(f"STREAM.INFO.{EVENTS}"))["ts"]))


async def first_seq(bus: Bus, stream: str = EVENTS) -> tuple[int, int]:
    """The oldest sequence that the stream still has (one more than the newest when it has none), and its stamp in
    nanoseconds (0 when it has none).
    """
    state = (await bus.api(f"STREAM.INFO.{stream}"))["state"]
    first, last = int(state["first_seq"]), int(state["last_seq"])
    if not state["messages"]:
        return last + 1, 0
    return first, parse_ns(str(state["first_ts"]))


async def last_seq(bus: Bus, stream: str = EVENTS) -> int:
    """The newest sequence of the stream."""
    return (await standing(bus, stream))[1]
