"""Waits for what other processes do."""

import time


def until(condition, seconds=120):
    """Looks ten times a second whether a condition holds; a test fails where it does not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
