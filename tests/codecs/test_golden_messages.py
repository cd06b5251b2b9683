"""Messages of earlier versions, kept in tests/golden: they are still read, and where any CPU gives them, still sent."""

from __future__ import annotations

import golden_messages as golden
import numpy as np
import pytest

from fedkd_mpi.codecs import CODECS, wire
from fedkd_mpi.codecs.tags import OWN, TAGS

CASES = golden.cases()
SENDER = {"up": golden.SENDER, "down": wire.SERVER}


@pytest.mark.parametrize("name", CASES)
def test_a_golden_message_is_read_as_when_it_was_made(name: str):
    case, message, decoded = golden.load(name)
    assert case == CASES[name]
    header, records = golden.read(message)
    assert header[:2] == (wire.UPDATE, wire.PLAIN)
    assert header[2:6] == (golden.ROUND, SENDER[case["leg"]], len(golden.SHAPES), golden.SAMPLES)
    for record in records:
        assert case["compression"]["codec"] in TAGS[record.encoding].codecs
    found = golden.decode(case, records)
    if case["compression"]["codec"] in golden.EXACT:
        np.testing.assert_array_equal(found.view(np.uint32), decoded.view(np.uint32))
    else:
        np.testing.assert_allclose(found, decoded, rtol=1e-6, atol=1e-6 * float(np.abs(decoded).max()))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["compression"]["codec"] in golden.EXACT])
def test_the_golden_update_still_gives_the_golden_bytes(name: str):
    case, message, _ = golden.load(name)
    assert golden.message(case).tobytes() == message.tobytes()


def test_golden_messages_hold_every_encoding_of_the_package():
    cases = [golden.load(name) for name in CASES]
    assert {case["compression"]["codec"] for case, *_ in cases} == set(CODECS)
    held = {record.encoding for _, message, _ in cases for record in golden.read(message)[1]}
    assert held == set(TAGS) - {OWN}


def test_error_feedback_changes_the_message_of_every_codec_that_loses_something():
    for name, case in CASES.items():
        if case["compression"].get("error_feedback", "none") != "none":
            plain, with_feedback = (golden.load(key)[1].tobytes() for key in (name.partition("-")[0], name))
            assert plain != with_feedback
