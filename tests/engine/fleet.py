"""Six containers as a host has them: some fail, some are silent, one nobody has allowed."""

from typing import Any

from msgspec import Struct

from tests.engine import Engine

_JSON = """
i=0; while [ $i -lt 40 ]; do
echo '{"level":"info","msg":"request served","status":200,"n":'$i'}'
[ $((i % 4)) = 0 ] && echo '{"level":"error","msg":"cannot reach payment service","attempt":'$i'}'
i=$((i+1)); done
"""
_TRACEBACKS = """
for i in 1 2 3; do
echo "INFO:worker:job $i taken"
echo "Traceback (most recent call last):
  File \\"/app/worker.py\\", line 41, in run
    total = order[\\"total\\"] / order[\\"count\\"]
ZeroDivisionError: division by zero" >&2
done
"""
SCRIPTS = {
    "json": _JSON,
    "python": _TRACEBACKS,
    "tty": "echo 'WARN disk is 91% full'; echo 'INFO still here'",
    "silent": "sleep 300",
    "noise": "head -c 20000 /dev/urandom; echo; echo 'ERROR after the noise'",
    "private": "echo 'ERROR the-secret-of-the-private-one'",
}
ALLOWED = ("json", "python", "tty", "silent", "noise")


class Fleet(Struct, frozen=True):
    """The containers by role; `private` is the one not to be allowed."""

    containers: dict[str, Any]

    def name(self, role: str) -> str:
        """Return the container's name."""
        return str(self.containers[role].name)


def fleet(engine: Engine) -> Fleet:
    """Start the six; those that end have ended when this returns."""
    started = {
        role: engine.run(script, name=f"remit-{engine.mark[:8]}-{role}", tty=role == "tty", wait=role != "silent")
        for role, script in SCRIPTS.items()
    }
    return Fleet(started)
