"""Text that a message can hold: what the system could not read, or half a surrogate pair, is none."""


def is_text(text: str) -> bool:
    """Whether a message can hold it as it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_text(text: str) -> str:
    """The text with what no message can hold replaced: a file's name, say, or a header, may be any bytes."""
    return text.encode(errors="replace").decode()
