"""A second opinion on the stream: it shares no code with the fold, so that it can catch it."""
