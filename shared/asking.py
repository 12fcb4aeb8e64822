"""The asker's side of the registry: one question, one answer, its errors by whose they are."""

import msgspec

from shared.bus import Bus
from shared.errors import UNREADABLE, Malformed, RemitError, Unavailable
from shared.ledger import Answer, Question
from shared.subjects import registry


async def ask(bus: Bus, question: str, values: Question, *, timeout_s: float) -> Answer:
    """The registry's answer: `Malformed` when it blames a field of the question, `RemitError` for any other error of
    its own, `Unavailable` when it does not answer or says what is no answer.
    """
    raw = await bus.request(registry(question), msgspec.json.encode(values), timeout_s=timeout_s)
    try:
        answer = msgspec.json.decode(raw, type=Answer)
    except UNREADABLE as error:
        raise Unavailable(f"the registry's answer cannot be read: {error}") from error
    if answer.error is not None:
        raise Malformed(answer.error, field=answer.field) if answer.field else RemitError(answer.error)
    return answer
