"""Every subject of Remit, built and read in this one file.

An engine subject is `<noun>.<verb>.<run>[.<step>[.<attempt>[.<task>]]]`; the literal stands above each builder.
Because the run is always the third token, all of one run is `*.*.<run>` and `*.*.<run>.>`.
"""

import re

from shared.errors import Malformed

EVENTS = "EVENTS"
TIMERS = "TIMERS"
CONFIG_BUCKET = "config"
ARTIFACTS_BUCKET = "artifacts"
MEMORY_BUCKET = "memory"
SNAPSHOTS_BUCKET = "snapshots"

# `*.*.*` is refused as a stream's subjects (10052), so the nouns are listed. `timer.fired.>` is not among
# them: it comes in by sourcing from TIMERS, and a client that publishes it reaches no stream at all.
EVENT_NOUNS = ("goal", "plan", "run", "step", "llm", "approval", "schedule", "audit")

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_STEP_ID = re.compile(r"[a-z0-9_-]{1,64}")
_DIGITS = re.compile(r"[0-9]+")

SCHEDULE_NAME_CHARS_MAX = 40  # `schedule_<name>_<tick>` has to be a principal

# A run id is a stream sequence; anything longer is somebody's joke, and int() of 4,000 digits is a slow one.
RUN_DIGITS_MAX = 19


def is_token(text: str) -> bool:
    return _TOKEN.fullmatch(text) is not None


def is_step_id(text: str) -> bool:
    return _STEP_ID.fullmatch(text) is not None


def is_principal(text: str) -> bool:
    """Never all digits: `goal.submitted.42` would read as a part of run 42."""
    return is_token(text) and _DIGITS.fullmatch(text) is None


def is_schedule_name(text: str) -> bool:
    return is_principal(text) and len(text) <= SCHEDULE_NAME_CHARS_MAX


def token(text: str, field: str) -> str:
    """`text` when it may stand in a subject; the server itself would store `ev.*` without complaint."""
    if not is_token(text):
        raise Malformed(f"{field} {text[:80]!r} must be 1 to 64 letters, digits, '_' or '-'", field=field)
    return text


# goal.submitted        goal.submitted.<principal>
def goal_submitted(principal: str = "") -> str:
    return f"goal.submitted.{principal}" if principal else "goal.submitted"


GOALS = ("goal.submitted", "goal.submitted.>")  # also what nobody may say: it is rejected aloud


# goal.rejected.<run>
def goal_rejected(run: int) -> str:
    return f"goal.rejected.{run}"


# plan.created.<run>
def plan_created(run: int) -> str:
    return f"plan.created.{run}"


# run.queued.<run>   run.started.<run>   run.completed.<run>
def run_queued(run: int) -> str:
    return f"run.queued.{run}"


def run_started(run: int) -> str:
    return f"run.started.{run}"


def run_completed(run: int) -> str:
    return f"run.completed.{run}"


# run.cancel_requested.<run>   run.cancel_requested.<run>.<principal>
def run_cancel_requested(run: int, principal: str = "") -> str:
    return f"run.cancel_requested.{run}.{principal}" if principal else f"run.cancel_requested.{run}"


# approval.requested.<run>.<step>   approval.expired.<run>.<step>       <step> is `run` for the whole run
def approval_requested(run: int, step: str) -> str:
    return f"approval.requested.{run}.{step}"


def approval_expired(run: int, step: str) -> str:
    return f"approval.expired.{run}.{step}"


# approval.granted.<run>.<step>   approval.granted.<run>.<step>.<principal>   approval.rejected.…
def approval_granted(run: int, step: str, principal: str = "") -> str:
    return f"approval.granted.{run}.{step}.{principal}" if principal else f"approval.granted.{run}.{step}"


def approval_rejected(run: int, step: str, principal: str = "") -> str:
    return f"approval.rejected.{run}.{step}.{principal}" if principal else f"approval.rejected.{run}.{step}"


# step.dispatched.<run>.<step>.<attempt>.<task>   step.dispatched.<run>.<step>.<attempt>.<task>.<host>
def step_dispatched(run: int, step: str, attempt: int, task: str, host: str | None = None) -> str:
    subject = f"step.dispatched.{run}.{step}.{attempt}.{task}"
    return f"{subject}.{host}" if host else subject


def step_dispatched_to(task: str, host: str | None = None) -> str:
    return f"step.dispatched.*.*.*.{task}.{host}" if host else f"step.dispatched.*.*.*.{task}"


# step.cancel_requested.<run>.<step>.<attempt>   step.cancelled.<run>.<step>.<attempt>
def step_cancel_requested(run: int, step: str, attempt: int) -> str:
    return f"step.cancel_requested.{run}.{step}.{attempt}"


STEP_CANCEL_REQUESTS = "step.cancel_requested.>"


def step_cancelled(run: int, step: str, attempt: int) -> str:
    return f"step.cancelled.{run}.{step}.{attempt}"


# step.completed.<run>.<step>.<attempt>   step.failed.<run>.<step>.<attempt>
def step_completed(run: int, step: str, attempt: int) -> str:
    return f"step.completed.{run}.{step}.{attempt}"


def step_failed(run: int, step: str, attempt: int) -> str:
    return f"step.failed.{run}.{step}.{attempt}"


# step.skipped.<run>.<step>
def step_skipped(run: int, step: str) -> str:
    return f"step.skipped.{run}.{step}"


# llm.called.<run>.<step>.<call>
def llm_called(run: int, step: str, call: str) -> str:
    return f"llm.called.{run}.{step}.{call}"


# progress.<run>.<step>      core NATS, not stored
def progress(run: int, step: str) -> str:
    return f"progress.{run}.{step}"


# timer.at.<run>.<what…>  in TIMERS, aimed at  timer.fired.<run>.<what…>
TIMER_AT = "timer.at."


def timer_at(run: int, what: str) -> str:
    return f"{TIMER_AT}{run}.{what}"


def timer_fired(run: int, what: str) -> str:
    return f"timer.fired.{run}.{what}"


def run_of_timer(at: str) -> int:
    """The run that the timer on this subject is for."""
    return int(at.split(".")[2])


def timer_target(at: str) -> str:
    """Where the timer that lies on this subject fires."""
    return f"timer.fired.{at.removeprefix(TIMER_AT)}"


# schedule.ticked.<name>.<tick>      <tick> is the epoch second at which it was due
def schedule_ticked(name: str, tick_s: int) -> str:
    return f"schedule.ticked.{name}.{tick_s}"


def ticks_of(name: str) -> str:
    return f"schedule.ticked.{name}.*"


# timer.at.schedule.<name>  in TIMERS, aimed at  timer.fired.schedule.<name>
def schedule_alarm(name: str) -> str:
    return f"timer.at.schedule.{name}"


def schedule_alarm_fired(name: str) -> str:
    return f"timer.fired.schedule.{name}"


SCHEDULE_ALARMS = "timer.at.schedule.*"


# audit.sealed.seal-<size>      <size> is how many messages of the stream the seal covers
def audit_sealed(size: int) -> str:
    return f"audit.sealed.seal-{size}"


AUDIT_SEALS = "audit.sealed.*"
_SEAL = re.compile(r"seal-([1-9][0-9]{0,18})")


def size_of_seal(name: str) -> int:
    """The size that the last token of a seal's subject names; 0 for none."""
    found = _SEAL.fullmatch(name)
    return int(found[1]) if found else 0


BY_SCHEDULE = "schedule_"


def schedule_principal(name: str, tick_s: int) -> str:
    """Who a tick's goal is said by: one principal a tick, so that a create-only goal is one run."""
    return f"{BY_SCHEDULE}{name}_{tick_s}"


def of_run(run: int) -> tuple[str, str]:
    """The two filters that match every event of a run except its goal, which is message `run` itself."""
    return f"*.*.{run}", f"*.*.{run}.>"


def worker_consumer(task: str, host: str | None = None) -> str:
    """The durable consumer that delivers a task's dispatched steps to whoever pulls; with `host`, that host's own."""
    return f"worker-{task}@{host}" if host else f"worker-{task}"  # no task's name has an @


# gpu.<host>.report   logs.<host>.sources|read|services   registry.<question>
def gpu_report(host: str) -> str:
    return f"gpu.{token(host, 'host')}.report"


def logs(host: str, what: str) -> str:
    return f"logs.{token(host, 'host')}.{what}"


def registry(question: str) -> str:
    return f"registry.{question}"


# Keys of the KV bucket `config`.
def directive_key(name: str) -> str:
    return f"directive.{name}"


def playbook_key(name: str) -> str:
    return f"playbook.{name}"


def task_key(name: str) -> str:
    return f"task.{name}"


def allow_key(entry_id: str) -> str:
    return f"allow.{entry_id}"


def schedule_key(name: str) -> str:
    return f"schedule.{name}"


def artifact(run: int, name: str) -> str:
    """The object's name in the store: `run_42/report.md`."""
    return f"run_{run}/{name}"
