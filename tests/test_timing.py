"""Timings take fair turns, and disturbed rounds are thrown away."""

import time

import pytest

from fastconv import _timing
from fastconv._timing import alternate, summarise


def test_turns_are_fair():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    rounds = []
    samples = alternate(functions, repeats=60, seconds=0, on_round=lambda done, total: rounds.append((done, total)))
    assert {name: len(times) for name, times in samples.items()} == {"a": 60, "b": 60, "c": 60}
    assert rounds == [(done, 60) for done in range(1, 61)]
    turns = ["".join(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert set(turns[-60:]) == {"abc", "acb", "bac", "bca", "cab", "cba"}


def test_rounds_without_a_core_for_each_thread_are_thrown_away(monkeypatch):
    disturbed = iter([False, True, True])
    monkeypatch.setattr(_timing, "_undisturbed", lambda: not next(disturbed, False))
    calls = []
    samples = alternate({"a": lambda: calls.append(None)}, repeats=6, seconds=0)
    # Of the warm-up one call; then a round is thrown away for what came after it, before it, or both.
    assert (len(samples["a"]), len(calls)) == (6, 1 + 3 + 6)


def test_patience_with_disturbances_ends(monkeypatch):
    monkeypatch.setattr(_timing, "_undisturbed", lambda: False)
    monkeypatch.setattr(_timing, "_PATIENCE", 0.0)
    assert len(alternate({"a": lambda: None}, repeats=6, seconds=0)["a"]) == 6


def test_patience_is_the_time_that_passes(monkeypatch):
    monkeypatch.setattr(_timing, "_undisturbed", lambda: time.sleep(0.001))
    monkeypatch.setattr(_timing, "_PATIENCE", 0.02)
    calls = []
    assert len(alternate({"a": lambda: calls.append(None)}, repeats=6, seconds=0)["a"]) == 6
    assert len(calls) < 40


def test_short_functions_are_repeated_up_to_the_limit():
    samples = alternate({"a": lambda: None}, repeats=2, seconds=60, limit=50)
    assert len(samples["a"]) == 50


@pytest.mark.parametrize("least", [3, 5])
def test_a_budget_ends_it_early(least):
    samples = alternate({"a": lambda: None, "b": lambda: None}, repeats=50, seconds=60, budget=0, least=least)
    assert {name: len(times) for name, times in samples.items()} == {"a": least, "b": least}


def test_summarise():
    assert summarise([5.0, 1.0, 4.0, 2.0, 3.0]) == (3.0, 2.0, 4.0)
