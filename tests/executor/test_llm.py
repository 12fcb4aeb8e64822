"""One call of a language model: what it may cost, what is recorded, and what a failing endpoint can do."""

import time

import msgspec
import pytest

from services.executor.tasks.llm import (
    ANSWER_TOKENS_LEAST,
    SYSTEM,
    Endpoint,
    Reply,
    endpoint,
    summarise,
)
from tests.stack import free_port
from tests.standins.llm import ANSWER, MODEL, Served, served

CANARY = "canary-7f3a9c-in-the-prompt"
TEXT = f"ERROR payment: cannot connect; {CANARY}"


async def ask(model: Served, text: str = TEXT, *, grant: int = 10_000, timeout_s: float = 10.0) -> Reply:
    return await summarise(
        Endpoint(f"{model.url}/chat/completions", "wanted-1"), text, grant=grant, timeout_s=timeout_s
    )


async def test_a_good_answer_is_the_summary_and_its_usage_the_record() -> None:
    with served(Served()) as model:
        reply = await ask(model)
    assert (reply.text, reply.note) == (ANSWER, "")
    assert reply.call is not None
    assert (reply.call.request_model, reply.call.response_model, reply.call.outcome) == ("wanted-1", MODEL, "ok")
    assert (reply.call.input_tokens, reply.call.output_tokens) == (321, 45)
    assert (reply.call.cached_tokens, reply.call.reasoning_tokens) == (7, 5)
    [sent] = model.requests
    assert sent["model"] == "wanted-1"
    assert sent["stream"] is False
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    assert TEXT in sent["messages"][1]["content"]


async def test_an_answer_in_many_small_parts_is_whole() -> None:
    """What arrives in many packets is one answer: a read of a socket gives what is there, not what is meant."""
    with served(Served("in_parts", answer="word " * 400)) as model:
        reply = await ask(model)
    assert reply.call is not None
    assert (reply.call.outcome, reply.call.input_tokens) == ("ok", 321)
    assert reply.text == ("word " * 400).strip()


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        "321",
        {"prompt_tokens": None, "completion_tokens": None},
        {"prompt_tokens": "321", "completion_tokens": 4.5},
        {"prompt_tokens": True, "completion_tokens": False},
        {"prompt_tokens": -1, "completion_tokens": 1 << 70},
        {"prompt_tokens_details": 3, "completion_tokens_details": []},
    ],
    ids=str,
)
async def test_usage_that_was_not_reported_is_unknown_and_never_zero(usage: object) -> None:
    with served(Served(usage=usage)) as model:
        reply = await ask(model)
    assert reply.text == ANSWER
    assert reply.call is not None
    assert (reply.call.input_tokens, reply.call.output_tokens) == (None, None)
    assert (reply.call.cached_tokens, reply.call.reasoning_tokens) == (None, None)


async def test_usage_of_zero_that_was_reported_is_zero() -> None:
    with served(Served(usage={"prompt_tokens": 0, "completion_tokens": 0})) as model:
        reply = await ask(model)
    assert reply.call is not None
    assert (reply.call.input_tokens, reply.call.output_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("mode", "outcomes"),
    [
        ("echo_400", {"http_400"}),
        ("500", {"http_500"}),
        ("redirect", {"http_307"}),
        ("hang", {"timeout"}),
        ("hang_in_body", {"timeout"}),
        ("close", {"unreachable"}),
        ("close_in_body", {"unreachable"}),
        ("garbage", {"malformed"}),
        ("empty", {"malformed"}),
        ("a_list", {"malformed"}),
        ("deep", {"malformed"}),
        ("half_json", {"malformed"}),
        ("huge", {"too_large"}),
        ("bomb", {"too_large"}),
    ],
)
async def test_an_endpoint_that_fails_costs_the_summary_and_nothing_else(
    mode: str, outcomes: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    """No exception, no content in the record or a log, usage unknown, and in time."""
    began_s = time.monotonic()
    with served(Served(mode)) as model, caplog.at_level(0):
        # Only what is to take too long needs a short patience; a busy machine needs some for the rest.
        reply = await ask(model, timeout_s=1.5 if "timeout" in outcomes else 6)
    assert time.monotonic() - began_s < 8
    assert reply.text is None
    assert reply.call is not None
    assert reply.call.outcome in outcomes
    assert (reply.call.input_tokens, reply.call.output_tokens) == (None, None)
    assert reply.call.outcome in reply.note
    assert len(model.requests) == 1
    said = msgspec.json.encode(reply).decode() + caplog.text
    assert CANARY not in said
    assert str(model.port) not in reply.note


async def test_nobody_there_is_unreachable() -> None:
    where = Endpoint(f"http://127.0.0.1:{free_port()}/v1/chat/completions", "m")
    reply = await summarise(where, TEXT, grant=10_000, timeout_s=5)
    assert reply.text is None
    assert reply.call is not None
    assert reply.call.outcome == "unreachable"


@pytest.mark.parametrize(
    "url", ["not a url", "http://", "ftp://127.0.0.1/x", "http://127.0.0.1:99999/", "//x", "http://[::1/"]
)
async def test_a_url_that_is_none_makes_no_call_and_says_why(url: str) -> None:
    reply = await summarise(Endpoint(url, "m"), TEXT, grant=10_000, timeout_s=2)
    assert (reply.text, reply.call) == (None, None)
    assert "REMIT_LLM_URL" in reply.note


@pytest.mark.parametrize(
    "changes",
    [
        {"choices": []},
        {"choices": None},
        {"choices": [7]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": None}}]},
        {"choices": [{"message": {"content": ["a"]}}]},
        {"choices": [{"message": {"content": ""}}]},
        {"choices": [{"message": {"content": "  \n "}}]},
    ],
    ids=str,
)
async def test_an_answer_without_text_is_no_summary_but_counts(changes: dict[str, object]) -> None:
    with served(Served(changes=changes)) as model:
        reply = await ask(model)
    assert reply.text is None
    assert "no text" in reply.note
    assert reply.call is not None
    assert (reply.call.outcome, reply.call.input_tokens) == ("ok", 321)


async def test_an_answer_that_was_cut_says_so() -> None:
    choice = {"message": {"content": "The first thing is"}, "finish_reason": "length"}
    with served(Served(changes={"choices": [choice]})) as model:
        reply = await ask(model)
    assert reply.text == "The first thing is"
    assert "cut" in reply.note


@pytest.mark.parametrize("grant", [0, 1, 100, ANSWER_TOKENS_LEAST, 400])
async def test_a_grant_that_is_too_small_makes_no_call(grant: int) -> None:
    with served(Served()) as model:
        reply = await ask(model, grant=grant)
    assert model.requests == []
    assert reply.call is None
    assert reply.text is None
    assert str(grant) in reply.note


@pytest.mark.parametrize("grant", [600, 850, 900, 1000, 1500, 4000, 10_000, 1_000_000])
@pytest.mark.parametrize("text", ["a", "x" * 100_000, "ü" * 50_000, "日本語のログ" * 5_000, "\U0001f600" * 9_000])
async def test_prompt_and_answer_together_stay_within_the_grant(grant: int, text: str) -> None:
    """A token is at least one byte: the prompt's bytes and `max_tokens` together never pass the grant."""
    with served(Served()) as model:
        reply = await ask(model, text, grant=grant)
    if not model.requests:
        assert reply.call is None
        assert grant < 1000, "a grant of this size is enough for a call"
        return
    [sent] = model.requests
    prompt_bytes = sum(len(message["content"].encode()) for message in sent["messages"])
    assert sent["max_tokens"] >= ANSWER_TOKENS_LEAST
    assert prompt_bytes + sent["max_tokens"] <= grant
    assert sent["messages"][0]["content"] == SYSTEM


async def test_a_model_s_name_that_is_none_is_not_recorded() -> None:
    """A server may put anything into `model`, the prompt as well: what is no name stays out of the stream."""
    for name in (TEXT, "m" * 5_000, "two\nlines", "", 7, None, {"a": 1}):
        with served(Served(changes={"model": name})) as model:
            reply = await ask(model)
        assert reply.call is not None
        assert reply.call.response_model is None, name
    for name in ("gpt-4o-2024-08-06", "meta-llama/Llama-3.1-8B-Instruct", "qwen2.5:7b", "accounts/x/models/y@1"):
        with served(Served(changes={"model": name})) as model:
            reply = await ask(model)
        assert reply.call is not None
        assert reply.call.response_model == name


async def test_the_key_goes_into_the_header_and_nowhere_else() -> None:
    with served(Served()) as model:
        where = Endpoint(f"{model.url}/chat/completions", "m", "sk-the-key")
        reply = await summarise(where, TEXT, grant=10_000, timeout_s=5)
    assert model.headers[0]["Authorization"] == "Bearer sk-the-key"
    assert b"sk-the-key" not in msgspec.json.encode([reply, model.requests])


async def test_userinfo_in_the_url_is_basic_authorisation() -> None:
    with served(Served()) as model:
        where = Endpoint(f"http://ann:hunter2@127.0.0.1:{model.port}/v1/chat/completions", "m")
        reply = await summarise(where, TEXT, grant=10_000, timeout_s=5)
    assert reply.text == ANSWER
    assert model.headers[0]["Authorization"].startswith("Basic ")


async def test_a_key_is_used_rather_than_userinfo() -> None:
    """Both may stand in a configuration; that is no reason to fail as if nobody were there."""
    with served(Served()) as model:
        where = Endpoint(f"http://ann:hunter2@127.0.0.1:{model.port}/v1/chat/completions", "m", "sk-the-key")
        reply = await summarise(where, TEXT, grant=10_000, timeout_s=5)
    assert reply.text == ANSWER
    assert model.headers[0]["Authorization"] == "Bearer sk-the-key"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/v1/chat/completions", None),
        ("", "/chat/completions"),
    ],
)
def test_the_endpoint_is_named_by_two_variables(monkeypatch: pytest.MonkeyPatch, url: str, path: str | None) -> None:
    monkeypatch.setenv("REMIT_LLM_URL", f"http://127.0.0.1:1{url}")
    monkeypatch.delenv("REMIT_LLM_MODEL", raising=False)
    assert endpoint() is None
    monkeypatch.setenv("REMIT_LLM_MODEL", "m")
    found = endpoint()
    assert found is not None
    assert found.url.removeprefix("http://127.0.0.1:1") == (path or url)
