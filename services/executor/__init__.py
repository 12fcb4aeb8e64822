"""The executor: decides what follows from the stream, and performs tasks. Two processes, one service."""
