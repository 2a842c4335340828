"""What the Kafka client tells no more than now and then."""

from __future__ import annotations

import logging

from flywheel.sparing import AGAIN_S, Sparing


def test_the_client_says_each_thing_at_once_and_again_only_after_a_while() -> None:
    now = 0.0
    sparing, written = Sparing(lambda: now), []

    def say(text: str, *values: object, level: int = logging.ERROR) -> None:
        record = logging.LogRecord("aiokafka", level, "", 0, text, values, None)
        if sparing.filter(record):
            written.append(record.getMessage())

    for port in range(100):
        say("Unable to connect to %s", port)
        now += AGAIN_S / 200
    say("Something else")
    say("of no concern", level=logging.DEBUG)
    say("of no concern", level=logging.DEBUG)
    now += AGAIN_S
    say("Unable to connect to %s", 7)
    assert written == [
        "Unable to connect to 0", "Something else", "of no concern", "of no concern",
        "Unable to connect to 7 (99 more like this since)",
    ]  # fmt: skip
