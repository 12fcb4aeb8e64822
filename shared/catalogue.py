"""What Remit can do and what it allows before anybody has configured it: built-in tasks, directives and playbooks."""

import hashlib
from pathlib import Path

import msgspec

from shared.plan import Directive, TaskSpec, canonical
from shared.playbook import Playbook, read_playbook

TASKS: tuple[TaskSpec, ...] = (
    TaskSpec(
        name="log_triage",
        description="Reads the allow-listed logs, ranks what went wrong and shows the evidence",
        keywords=["log", "triage", "analyze", "error", "warning", "event", "exception", "crash"],
        timeout_s=900,
        uses_tokens=True,
    ),
    TaskSpec(
        name="gpu_report",
        description="Asks every host's GPU agent for the last minutes and names the hotspots",
        keywords=["gpu", "nvidia", "vram", "cuda", "utilization", "memory", "video", "graphics"],
        timeout_s=120,
    ),
    TaskSpec(
        name="service_map",
        description="Maps the allow-listed containers of every host and what connects them",
        keywords=["service", "map", "network", "container", "port", "connection", "expose", "topology"],
        timeout_s=120,
    ),
    TaskSpec(name="noop", description="Does nothing and succeeds; for measuring and for tests", timeout_s=60),
    TaskSpec(
        name="sleep",
        description="Sleeps for `seconds` in a process of its own; for trying out limits and cancelling",
        timeout_s=3_600,
    ),
    TaskSpec(name="fail", description="Fails, always; for tests", timeout_s=60, max_attempts=1),
)

ANY_TASK = "*"  # in a directive's task_list: every task of the catalogue, in its order

DIRECTIVES: tuple[Directive, ...] = (
    Directive(name="default", description="Every task of the catalogue", task_list=[ANY_TASK]),
    Directive(name="D1", description="Log triage only", task_list=["log_triage"]),
    Directive(name="D2", description="GPU report only", task_list=["gpu_report"]),
    Directive(name="D3", description="Service map only", task_list=["service_map"]),
    Directive(name="D4", description="Custom: make it yours with `remit directives set D4`", task_list=[ANY_TASK]),
)


def playbook_texts() -> dict[str, bytes]:
    """The TOML of the built-in playbooks by name: `playbooks/<name>.toml`, beside this package wherever it lies."""
    # Not importlib.resources: it takes longer to import than all playbooks to read, and every command comes by here.
    return {path.stem: path.read_bytes() for path in sorted((Path(__file__).parents[1] / "playbooks").glob("*.toml"))}


def _playbooks() -> dict[str, Playbook]:
    read = {name: read_playbook(text, name)[0] for name, text in playbook_texts().items()}
    return {name: playbook for name, playbook in read.items() if playbook is not None}


class Catalogue(msgspec.Struct, frozen=True):
    """The tasks that can be planned, in a fixed order (built-in ones first); directives and playbooks by name."""

    tasks: tuple[TaskSpec, ...] = TASKS
    directives: dict[str, Directive] = msgspec.field(default_factory=lambda: {one.name: one for one in DIRECTIVES})
    playbooks: dict[str, Playbook] = msgspec.field(default_factory=_playbooks)

    @property
    def version(self) -> str:
        """Twelve hex digits of the SHA-256 over the tasks: equal catalogues have equal versions, anywhere."""
        return hashlib.sha256(canonical(self.tasks)).hexdigest()[:12]

    def task(self, name: str) -> TaskSpec | None:
        return next((task for task in self.tasks if task.name == name), None)


BUILT_IN = Catalogue()
