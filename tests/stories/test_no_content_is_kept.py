"""No content is kept: what stands in logs, prompts, answers, error bodies, URLs and environments comes to rest in no
store, except what belongs into an artifact or is the record itself; what is a secret by its shape, not even there.

A word of its own is planted in each place (`tests/canary.py`). The stack is driven through everything that content goes
through, well and badly; then every file, table, stream and bucket is searched. Words that may be kept somewhere are
also the proof that the search sees: each has to be found where it belongs.
"""

import asyncio
import base64
import contextlib
import json
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shared.bus import connect
from tests.canary import Find, Flock
from tests.engine import engine
from tests.stack import Stack, free_port, stack, until
from tests.standins.llm import Served, served
from tests.stories.wire import Wire

pytestmark = pytest.mark.slow

SERVICES = ("planner", "executor", "registry", "sealer", "log_agent", "gpu_agent", "gateway")
LEAKY_TASK = "leaky"

# Where what is kept may be, and why. A bucket's messages lie in its files, so each place is named twice.
_OF_TRIAGE = r"object OBJ_artifacts run_\d+/(report\.md|triage\.json)$"
_OBJECT_FILES = r"file jetstream/.*/OBJ_artifacts/msgs/"
IN_TRIAGE = rf"^({_OF_TRIAGE}|{_OBJECT_FILES}|file cli/report-\d+\.out$)"
TRIAGED = "a triage shows what logs say to who asks for it: redacted evidence, in its two artifacts"
SUMMARISED = "a summary is what the model was asked for, and stands in the triage's two artifacts"
IN_MAP = rf"^(object OBJ_artifacts run_\d+/services\.json$|{_OBJECT_FILES})"
MAPPED = "a service map shows the labels that are no secrets, in its artifact"
IN_RECORD = (
    r"^(stream EVENTS: |file jetstream/.*/EVENTS/msgs/|file ledger\.duckdb|table (events|runs|steps|plans|approvals)\.|"
    rf"file cli/.*\.(out|err|parquet)$|{_OF_TRIAGE}|{_OBJECT_FILES})"
)
RECORDED = "the words of who submits a goal, answers or performs a task of their own are the record"


@dataclass
class Told:
    """Everything that was planted, the stack it was planted around, and what was found."""

    stack: Stack
    flock: Flock = field(default_factory=Flock)
    model: Served = field(default_factory=Served)
    found: set[Find] = field(default_factory=set)
    outcomes: list[str] = field(default_factory=list)  # of the language model's calls, in order
    runs: int = 0

    def cli(self, name: str, *argv: str, code: int = 0) -> str:
        """Run the CLI; its output is a file that is searched, too."""
        done = self.stack.remit(*argv, timeout_s=100)
        assert done.returncode == code, done.stderr
        folder = self.stack.folder / "cli"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.out").write_text(done.stdout)
        (folder / f"{name}.err").write_text(done.stderr)
        return done.stdout

    def search(self) -> None:
        """Stop what writes; then every message, every file and every table."""
        for name in [name for name in self.stack.processes if name not in ("nats", "registry")]:
            self.stack.stop(name)
        self.stack.kill("registry")  # what it had not put into its file yet is in its log

        async def read() -> set[Find]:
            bus = await connect(self.stack.url, "search")
            try:
                return await self.flock.finds_in_streams(bus)
            finally:
                await bus.close()

        self.found |= asyncio.run(read())
        self.stack.stop("nats")
        self.found |= self.flock.finds_in_files(self.stack.folder)


@contextlib.contextmanager
def watched_stack(folder: Path) -> Iterator[Told]:
    """NATS, and an environment in which services keep their files below `folder` and tell all that they can."""
    with stack(folder) as made:
        for name in ("home", "tmp"):
            (folder / name).mkdir()
        made.environment |= {
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "REMIT_LOG_LEVEL": "debug",
        }
        yield Told(made)


def log_lines(flock: Flock) -> list[str]:
    """What a program may write, with a word in each place where content or a secret can be."""

    def secret(place: str) -> str:
        return flock.plant(f"log: {place}")

    def said(place: str) -> str:
        return flock.plant(f"log: {place}", kept=IN_TRIAGE, why=TRIAGED)

    basic = base64.b64encode(f"ann:{secret('basic authorization')}".encode()).decode()
    claims = base64.urlsafe_b64encode(f'{{"sub":"{secret("JWT claims")}"}}'.encode()).rstrip(b"=").decode()
    inner = json.dumps({"api_key": secret("JSON in JSON")})
    return [
        f"INFO the service {said('plain, harmless')} has started",
        f"ERROR cannot reach {said('plain')} at once",
        f"ERROR login failed for ann, password={secret('password=')} attempt 3",
        f"ERROR mysql --password {secret('a flag')} -u root has failed",
        json.dumps({"level": "error", "msg": f"the order {said('JSON value')} is lost", "token": secret("JSON token")}),
        json.dumps({"level": "error", "msg": "no such field", said("JSON key"): 3}),
        json.dumps({"level": "error", "msg": f"sent {inner}"}),
        json.dumps({"level": "error", "msg": "headers", "headers": {"X-Api-Key": secret("X-Api-Key in JSON")}}),
        f"ERROR lost postgres://app:{secret('URL password')}@db.internal:5432/shop",
        f"ERROR GET https://api.internal/v1/{said('URL path')}?access_token={secret('URL query token')}&page=2 500",
        f"ERROR GET https://api.internal/find?q={said('URL query word')}&sig={secret('URL query signature')} 502",
        f"ERROR GET /oauth?client_secret%3D{secret('URL query, escaped')}%26a%3D1 gave 403",
        f"ERROR upstream refused Authorization: Bearer {secret('bearer authorization')}",
        f"ERROR upstream refused authorization: Basic {basic}",
        f"ERROR refused Cookie: session={secret('Cookie')}; theme=dark",
        f"ERROR sent Set-Cookie: sid={secret('Set-Cookie')}; Path=/; HttpOnly",
        f"ERROR refused the token eyJhbGciOiJIUzI1NiJ9.{claims}.c2lnbmF0dXJl",
        f"ERROR refused the key sk-{secret('API key')}",
        f"ERROR environment DATABASE_PASSWORD={secret('an environment line')} PATH=/bin",
        "ERROR cannot finish the job",
        "Traceback (most recent call last):",
        f'  File "/app/{said("stack trace, file")}.py", line 41, in run',
        f"    connect('postgres://app:{secret('stack trace, source')}@db/shop')",
        f"DbError: no room for {said('stack trace, message')} at postgres://a:{secret('stack trace, URL')}@db/",
    ]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """Everything happens once; then it is searched."""
    log = tmp_path_factory.mktemp("logs") / "app.log"
    with watched_stack(tmp_path_factory.mktemp("stack")) as told, served(told.model):
        flock = told.flock
        told.stack.environment |= {
            "REMIT_NATS_URL": f"nats://remit:{flock.plant('environment: NATS password')}@127.0.0.1:"
            f"{told.stack.nats_port}",
            "REMIT_LLM_API_KEY": flock.plant("environment: key of the model"),
            "REMIT_LLM_MODEL": "small-1",
            "AWS_SECRET_ACCESS_KEY": flock.plant("environment: somebody else's key"),
            "HTTPS_PROXY": f"http://ann:{flock.plant('environment: proxy password')}@127.0.0.1:9",
        }
        ask_at(told, f"127.0.0.1:{told.model.port}")
        for service in SERVICES:
            told.stack.start(service)
        until(lambda: '"logs"' in told.stack.remit("hosts", "-o", "json").stdout, "the log agent answers")
        lines = log_lines(flock)
        log.write_text("")
        told.cli("allow", "allow", "add", str(log))
        answers(told, log, lines)
        failures(told, log, lines)
        goals(told)
        requests(told)
        questions(told)
        away(told)
        told.search()
        yield told


def ask_at(told: Told, address: str) -> None:
    """A URL with a user, a password and a query; each address has words of its own."""
    password = told.flock.plant(f"environment: password in the model's URL {len(told.flock.canaries)}")
    query = told.flock.plant(f"environment: query of the model's URL {len(told.flock.canaries)}")
    told.stack.environment["REMIT_LLM_URL"] = f"http://ann:{password}@{address}/v1?code={query}"


def triage(told: Told, log: Path, lines: list[str], *argv: str) -> dict[str, Any]:
    """The same failing lines again, and a triage of them."""
    with log.open("a") as file:
        file.write("\n".join(lines * 3) + "\n")
    told.runs += 1
    run: dict[str, Any] = json.loads(
        told.cli(f"triage-{told.runs}", "submit", "--task", "log_triage", *argv, "--wait", "-o", "json")
    )
    assert run["status"] == "succeeded", run
    return run


def answers(told: Told, log: Path, lines: list[str]) -> None:
    """A model that answers with content in every field of its answer."""
    plant = told.flock.plant
    said = plant("answer: its text", kept=IN_TRIAGE, why=SUMMARISED)
    told.model.answer = (
        f"The service {said} fails. It logs in with password={plant('answer: a secret in its text')} now."
    )
    message = {"role": "assistant", "content": told.model.answer}
    message |= {name: plant(f"answer: {name}") for name in ("reasoning_content", "reasoning", "refusal")}
    message["tool_calls"] = [{"function": {"name": plant("answer: a tool"), "arguments": plant("answer: arguments")}}]  # type: ignore[assignment]
    other = {"index": 1, "message": {"role": "assistant", "content": plant("answer: a second choice")}}
    told.model.changes = {
        "id": plant("answer: id"),
        "model": f"a model that says {plant('answer: model')}",
        "system_fingerprint": plant("answer: fingerprint"),
        "choices": [{"index": 0, "message": message, "finish_reason": plant("answer: finish_reason")}, other],
        "usage": {"prompt_tokens": 5, "completion_tokens": 6, plant("answer: usage key"): plant("answer: usage value")},
    }
    run = triage(told, log, lines)["run"]
    told.cli(f"report-{run}", "report", str(run))
    told.model.changes |= {"model": f"sk-{plant('answer: a key as model')}", "choices": [{"message": message}]}
    triage(told, log, lines)
    told.model.changes |= {"usage": plant("answer: usage"), "choices": [{"message": plant("answer: message")}]}
    triage(told, log, lines)


def failures(told: Told, log: Path, lines: list[str]) -> None:
    """An endpoint that fails in every way, with words in all that it says; then one that is not there at all."""
    plant, model = told.flock.plant, told.model

    def head(status: str, place: str, *headers: str) -> bytes:
        lines = [f"HTTP/1.1 {status}", *headers, f"X-Told: {plant(f'{place}: header')}", "Content-Length: 400"]
        return "\r\n".join([*lines, "", plant(f"{place}: body").ljust(400)]).encode()

    model.error = {"error": {"message": plant("error body: 400 and 500")}}
    for model.mode in ("echo_400", "500", "close_in_body", "garbage"):
        triage(told, log, lines)
    port = free_port()
    password, path, query = (plant(f"redirect: {part}") for part in ("password", "path", "query"))
    location = f"Location: http://u:{password}@127.0.0.1:{port}/{path}?k={query}"
    stream = "".join(
        f'data: {{"choices":[{{"delta":{{"content":"{plant(f"event stream: part {part}")}"}}}}]}}\n\n'
        for part in range(3)
    )
    model.mode = "raw"
    for model.raw in (
        head("307 Temporary Redirect", "redirect", location),
        head(f"401 {plant('401: reason')}", "401", f'WWW-Authenticate: Bearer realm="{plant("401: realm")}"'),
        head("429 Too Many Requests", "429", f"Retry-After: {plant('429: Retry-After')}"),
        head("200 OK", "an answer that is no JSON", "Content-Type: application/json"),
        f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n{stream}".encode(),
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz{plant('chunks that are none')}\r\n".encode(),
        f"HTTP/1.1 200 OK\r\n{plant('a header that is none')} \x01: 1\r\n\r\n".encode(),
        f"220 {plant('something else than HTTP')} ready\r\n".encode(),
        b"",
    ):
        triage(told, log, lines)
    model.mode, model.raw = (
        "raw_hang",
        head("200 OK", "an answer that never ends", "Content-Type: application/json")[:-100],
    )
    triage(told, log, lines, "--time-budget", "33")
    for address in (f"127.0.0.1:{port}", "[::1", f"127.0.0.1:{plant('URL: a port that is none')}"):
        ask_at(told, address)
        told.stack.stop("executor")
        told.stack.start("executor")
        triage(told, log, lines)


def goals(told: Told) -> None:
    """People's own words are the record; what a task of Remit's trips over is not."""
    plant, cli = told.flock.plant, told.cli

    def word(place: str) -> str:
        return plant(place, kept=IN_RECORD, why=RECORDED)

    text, note = word("goal: text"), json.dumps(word("goal: a parameter"))
    cli("goal", "submit", f"triage the logs of {text}", "--param", f"note={note}", "--wait")
    cli("goal-rejected", "submit", "--task", word("goal: a task that is not there"), "--wait", code=3)
    cli("directive", "directives", "set", "asks", "--task", "noop", "--approval-required", "true")
    run = cli("asked", "submit", "--task", "noop", "--directive", "asks").split()[-1]
    until(lambda: "noop" in told.stack.remit("approvals", run).stdout, "it asks")
    cli("refused", "reject", run, "--reason", word("answer to a question: reason"))
    cli("task", "tasks", "add", "elsewhere")
    run = cli("waits", "submit", "--task", "elsewhere").split()[-1]
    with contextlib.closing(Wire(told.stack.nats_port)) as wire:
        subject = wire.pulled("worker-elsewhere", ack=True)
        attempt = subject.split(".", 2)[2].removesuffix(".elsewhere")
        body = {"error": "broken", "message": f"it is {word('a step of a stranger: message')}", "retryable": True}
        once = {"Nats-Expected-Last-Subject-Sequence": "0"}
        assert "seq" in wire.request(f"step.failed.{attempt}", json.dumps(body).encode(), once)
    cli("cancelled", "cancel", run, "--wait", "--reason", word("cancel: reason"), code=3)
    cli("leaky-task", "tasks", "add", LEAKY_TASK, "--attempts", "1")
    words = {
        f"LEAKY_{name}": plant(f"a task that fails: {name.lower()}") for name in ("SAID", "CAUSE", "GROUP", "SECRET")
    }
    told.stack.start_as("leaky", [sys.executable, "-m", "tests.stories.leaky_worker"], **words)
    for how in ("bug", "group", "told"):
        told.cli(f"leaky-{how}", "submit", "--task", LEAKY_TASK, "--param", f'how="{how}"', "--wait", code=1)
    until(lambda: "the handler failed" in told.stack.log("leaky"), "the worker tells of the failure")


def requests(told: Told) -> None:
    """HTTP, with words in query strings, headers, bodies that are none and SQL; some of it ends in an error."""
    port = int((told.stack.folder / "http.port").read_text())
    plant = told.flock.plant
    sql = {place: f"select '{plant(f'SQL: {place}')}' as {place}" for place in ("text", "comment")}
    sql["comment"] = f"select 1 -- {plant('SQL: a comment')}"
    sql["fails"] = f"select cast('{plant('SQL: a value that is no number')}' as int) from runs"
    sql["is refused"] = f"select * from read_csv('{plant('SQL: a file')}')"
    for method, path, body in (
        ("GET", f"/api/runs?limit={plant('query: no number')}", b""),
        ("GET", f"/api/runs/1?token={plant('query: of a run')}", b""),
        ("GET", f"/nowhere?token={plant('query: of no path')}", b""),
        ("GET", f"/readyz?token={plant('query: of readyz')}", b""),
        ("POST", f"/api/runs?token={plant('query: of a goal')}", f"{{{plant('a body that is no JSON')}".encode()),
        ("POST", "/api/runs/1/cancel", f'{{"reason": 3, "{plant("a body that cannot be used")}": 1}}'.encode()),
        *(("POST", "/api/sql", json.dumps({"sql": text}).encode()) for text in sql.values()),
    ):
        place = f"{method} {path.split('?')[0]} {len(told.flock.canaries)}"
        headers = {
            "Authorization": f"Bearer {plant(f'{place}: Authorization')}",
            "Cookie": f"sid={plant(f'{place}: Cookie')}",
            "Referer": f"http://127.0.0.1/{plant(f'{place}: Referer')}",
            "User-Agent": plant(f"{place}: User-Agent"),
            "Content-Type": "application/json",
        }
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body or None, headers, method=method)
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=20) as answer:
            answer.read()
    for raw in (
        f"GET /{plant('no HTTP: target')} HTTP/9.9\r\n\r\n",
        f"GET / HTTP/1.1\r\n{plant('no HTTP: header')} \x01\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(raw.encode())
            assert client.recv(100).startswith(b"HTTP/1.")


def questions(told: Told) -> None:
    """Everything that the CLI shows, printed into files; tables in each of their formats."""
    last = str(json.loads(told.cli("runs", "runs", "-o", "json"))["runs"][0]["run"])
    for name, *argv in (
        ("runs.text", "runs"),
        ("show", "show", "1", "-o", "json"),
        ("replay", "replay", last),
        ("audit", "audit", "--all", "--notes", "-o", "json"),
        ("tokens", "tokens", "--by", "model"),
        ("usage", "usage"),
        ("daily", "daily"),
        ("hosts", "hosts"),
        ("doctor", "doctor"),
        ("sources", "allow", "ls"),
        ("config", "tasks", "ls", "-o", "json"),
        ("as-of", "sql", "select * from steps", "--as-of", last),
        ("rebuild", "rebuild"),
        ("proof", "proof", "export", last, "--unsealed"),
    ):
        told.cli(name, *argv)
    calls = json.loads(told.cli("calls", "sql", "select outcome from llm_calls order by seq", "-o", "json"))
    told.outcomes = [row["outcome"] for row in calls["rows"]]
    told.cli(
        "sql", "sql", "select * from events", "-o", "parquet", "--to", str(told.stack.folder / "cli" / "events.parquet")
    )


def away(told: Told) -> None:
    """NATS goes, is asked for all the same, and comes back: errors name addresses, and these hold a password."""
    told.stack.stop("nats")
    told.cli("away", "runs", code=5)
    port = int((told.stack.folder / "http.port").read_text())
    for path in ("/api/runs", "/api/runs/1", "/readyz"):
        url = f"http://127.0.0.1:{port}{path}?token={told.flock.plant(f'query: of {path} while NATS is away')}"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url, timeout=20)
        assert refused.value.code == 503
        refused.value.close()
    told.stack.start_as("another-planner", [sys.executable, "-m", "services.planner"])
    until(lambda: "waiting for NATS" in told.stack.log("another-planner"), "a planner waits for NATS")
    told.stack.start_nats()
    until(lambda: "succeeded" in told.stack.remit("submit", "--task", "noop", "--wait").stderr, "runs are done again")


def test_every_word_that_may_be_kept_is_found_where_it_belongs(told: Told) -> None:
    """Otherwise the search, or what it searches, would be at fault."""
    at = {(one.place, one.where.split(":")[0].split(" ")[0]) for one in told.found}
    for one in told.flock.canaries.values():
        if one.kept == IN_RECORD:
            assert {(one.place, kind) for kind in ("stream", "table", "file")} <= at, one
        elif one.kept:
            assert {(one.place, kind) for kind in ("object", "file")} <= at, one


def test_no_word_is_found_anywhere_else(told: Told) -> None:
    """In no other stream, table, artifact, log or file, in no spelling, and no part of it; a secret nowhere at all."""
    assert len(told.flock.canaries) > 100
    strays = told.flock.strays(told.found)
    assert not strays, "\n".join(map(str, strays))


def test_no_secret_of_a_log_line_was_in_a_prompt(told: Told) -> None:
    """What leaves for the model is searched like what is stored; the words around the secrets were in it."""
    prompts = json.dumps(told.model.requests).encode()
    found = {one.place for one in told.flock.finds("prompts", prompts)}
    assert "log: plain" in found, "the model was asked about these lines"
    assert [place for place in found if not told.flock.canaries[place].kept] == []
    assert not any(place.startswith("goal") for place in found)


def test_the_endpoint_failed_in_each_way(told: Told) -> None:
    """Else the words in its errors would prove nothing."""
    good, bad = told.outcomes[:3], told.outcomes[3:]
    assert good == ["ok"] * 3
    assert bad == [
        *("http_400", "http_500", "unreachable", "malformed"),
        *("http_307", "http_401", "http_429", "malformed", "malformed"),
        *("unreachable", "unreachable", "unreachable", "unreachable", "timeout"),
        "unreachable",  # and two URLs that are none: nothing was called
    ]


def test_the_services_told_what_they_did(told: Told) -> None:
    """A log that says nothing holds nothing: each service ran at the level that tells the most."""
    for service in (*SERVICES, "leaky"):
        assert told.stack.log(service), service


@pytest.mark.docker
def test_what_containers_hold_stays_with_them(tmp_path: Path) -> None:
    """Nobody reads environment and command; labels and lines come without their secrets, into the artifacts only."""
    with engine() as made, watched_stack(tmp_path) as told:
        flock, name = told.flock, f"remit-{made.mark[:8]}-canary"
        labels = {
            "team": flock.plant("label", kept=IN_MAP, why=MAPPED),
            "db.password": flock.plant("label: password"),
            "upstream": f"http://ann:{flock.plant('label: URL password')}@up.internal/",
            "traefik.basicauth.users": f"ann:{flock.plant('label: basic authorization')}",
        }
        environment = {
            "API_KEY": flock.plant("container's environment: a key"),
            "GREETING": flock.plant("container's environment: a word"),
        }
        script = "\n".join(f"echo '{line}'" for line in log_lines(flock) if "'" not in line)
        made.run(f": {flock.plant('command')}\n{script}", name=name, labels=labels, environment=environment)
        for service in SERVICES:
            told.stack.start(service)
        until(lambda: '"logs"' in told.stack.remit("hosts", "-o", "json").stdout, "the log agent answers")
        told.cli("allow", "allow", "add", name, "--host", "testhost")
        for task in ("log_triage", "service_map"):
            run = json.loads(told.cli(task, "submit", "--task", task, "--wait", "-o", "json"))
            assert run["status"] == "succeeded", run
        told.cli("hosts", "hosts", "-o", "json")
        told.search()
    assert {"label", "log: plain"} <= {one.place for one in told.found}
    strays = flock.strays(told.found)
    assert not strays, "\n".join(map(str, strays))
