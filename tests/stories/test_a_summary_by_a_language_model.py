"""A language model summarises the findings within its budget, and nothing of what it reads or says is recorded."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.stack import SERVICES, Stack, stack, until
from tests.standins.llm import USAGE, Served, served
from tests.stories.search import files_with, spellings, tables

# Words that must stay where they are put. The first three are secrets in log lines.
IN_PASSWORD = "hunter2-Zq8vN3xT"
IN_BEARER = "eyAbearerQ7w9K2mZt4"
IN_USERINFO = "dbpass-Rm5Yk1Wc"
IN_ANSWER = "only-the-model-says-J6pLd0Bs"
IN_ERROR_BODY = "only-the-error-says-Xt2FhVe9"
IN_URL = "llmuserpass-Gc4MnUo7"
IN_KEY = "sk-Hy3DsAi8QpWb5KrT"
SECRETS = (IN_PASSWORD, IN_BEARER, IN_USERINFO, IN_URL, IN_KEY, IN_ERROR_BODY)
MODEL = "tiny-1"
BUDGET = 20_000


@dataclass
class House:
    """A stack with a log agent, one allowed log file, and a language model's server."""

    stack: Stack
    model: Served
    log: Path

    def triage(self, mode: str, *argv: str, usage: Any = USAGE) -> dict[str, Any]:
        """One more batch of failing lines, and a triage of them while the model behaves as `mode` says."""
        self.model.mode, self.model.usage = mode, usage
        with self.log.open("a") as log:
            for attempt in range(5):
                log.write(
                    f"ERROR payment: cannot log in, password={IN_PASSWORD} attempt {attempt}\n"
                    f"ERROR upstream refused Authorization: Bearer {IN_BEARER}\n"
                    f"ERROR lost postgres://app:{IN_USERINFO}@db.internal:5432/shop\n"
                )
        done = self.stack.remit("submit", "--task", "log_triage", *argv, "--wait", "-o", "json", timeout_s=100)
        assert done.returncode == 0, done.stderr
        run: dict[str, Any] = json.loads(done.stdout)
        return run

    def report(self, run: dict[str, Any]) -> str:
        return self.stack.remit("report", str(run["run"])).stdout

    def calls(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        events = json.loads(self.stack.remit("events", str(run["run"]), "-o", "json").stdout)
        return [one["data"] for one in events if one["subject"].startswith("llm.called.")]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    log = tmp_path_factory.mktemp("logs") / "app.log"
    log.write_text("INFO started\n")
    answer = f"The payment service cannot log in. {IN_ANSWER}"
    error = {"error": {"message": IN_ERROR_BODY}}
    with served(Served(answer=answer, error=error)) as model:
        environment = {
            "REMIT_LLM_URL": f"http://ann:{IN_URL}@127.0.0.1:{model.port}/v1",
            "REMIT_LLM_MODEL": MODEL,
            "REMIT_LLM_API_KEY": IN_KEY,
            "REMIT_LOG_LEVEL": "debug",
        }
        with stack(tmp_path_factory.mktemp("stack"), *SERVICES, "log_agent", environment=environment) as made:
            until(lambda: '"logs"' in made.remit("hosts", "-o", "json").stdout, "the log agent answers")
            assert made.remit("allow", "add", str(log)).returncode == 0
            yield House(made, model, log)


def test_the_summary_stands_in_the_report_and_its_usage_in_the_account(house: House) -> None:
    """What the server reported is what the run has used, to the token."""
    run = house.triage("good", "--token-budget", str(BUDGET))
    assert IN_ANSWER in house.report(run)
    [call] = house.calls(run)
    assert (call["request_model"], call["response_model"], call["outcome"]) == (MODEL, "stand-in-1", "ok")
    assert (call["input_tokens"], call["output_tokens"]) == (321, 45)
    assert run["tokens"] == {"input": 321, "output": 45, "unknown_calls": 0}
    assert house.model.headers[-1]["Authorization"] == f"Bearer {IN_KEY}"
    sent = house.model.requests[-1]
    prompt_bytes = sum(len(one["content"].encode()) for one in sent["messages"])
    assert prompt_bytes + sent["max_tokens"] <= BUDGET
    assert "cannot log in" in sent["messages"][1]["content"]  # it was asked about these lines


def test_usage_that_is_not_reported_is_an_unknown_call(house: House) -> None:
    run = house.triage("good", usage=None)
    assert IN_ANSWER in house.report(run)
    assert run["tokens"] == {"input": 0, "output": 0, "unknown_calls": 1}

    def unknown_calls() -> int:
        total = json.loads(house.stack.remit("tokens", "-o", "json").stdout)["total"]
        return int(total["unknown_calls"])

    until(lambda: unknown_calls() >= 1, "the registry has folded the call")


@pytest.mark.parametrize("mode", ["echo_400", "500", "close", "close_in_body", "garbage", "huge"])
def test_an_endpoint_that_fails_costs_the_summary_and_not_the_report(house: House, mode: str) -> None:
    """The run succeeds, the report says that it has no summary, and the call is recorded with its usage unknown."""
    run = house.triage(mode)
    report = house.report(run)
    assert "cannot log in" in report
    assert "no summary" in report
    assert run["tokens"] == {"input": 0, "output": 0, "unknown_calls": 1}
    [call] = house.calls(run)
    assert call["outcome"] != "ok"
    assert call["input_tokens"] is None


def test_a_budget_of_nothing_makes_no_call(house: House) -> None:
    asked = len(house.model.requests)
    run = house.triage("good", "--token-budget", "0")
    assert len(house.model.requests) == asked
    assert house.calls(run) == []
    assert run["tokens"] == {"input": 0, "output": 0, "unknown_calls": 0}
    assert "no summary" in house.report(run)


def test_no_finding_makes_no_call(house: House) -> None:
    asked = len(house.model.requests)
    done = house.stack.remit("submit", "--task", "log_triage", "--wait", "-o", "json")
    assert done.returncode == 0
    assert len(house.model.requests) == asked


def test_no_secret_of_a_log_line_reaches_the_model(house: House) -> None:
    house.triage("good")
    sent = json.dumps(house.model.requests)
    assert "cannot log in" in sent
    for secret in SECRETS:
        assert not [one for one in spellings(secret) if one.decode() in sent], secret


def test_prompts_answers_and_secrets_are_in_no_record(house: House) -> None:
    """No stream, no bucket, no table, no log file; the answer stands in its run's artifacts and nowhere else."""
    house.triage("echo_400")
    house.triage("good")
    house.stack.stop("registry")
    try:
        for name, rows in tables(house.stack.folder):
            for canary in (*SECRETS, IN_ANSWER):
                assert canary not in rows, (canary, name)
    finally:
        house.stack.start("registry")
    for canary in SECRETS:
        assert files_with(house.stack.folder, canary) == [], canary
    kept = files_with(house.stack.folder, IN_ANSWER)
    assert kept, "the summary is in the artifacts' store, so this search can find it"
    assert all("OBJ_artifacts" in path for path in kept), kept


def test_what_the_model_was_asked_is_in_no_event(house: House) -> None:
    """Every line of the prompt that is not a count is sought in the run's events."""
    run = house.triage("good")
    prompt = house.model.requests[-1]["messages"][1]["content"]
    said = house.stack.remit("events", str(run["run"]), "-o", "json").stdout
    for phrase in ("cannot log in", "upstream refused", "db.internal"):
        assert phrase in prompt
        assert phrase not in said
