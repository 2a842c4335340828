"""What is left out shows by reason, scenario and length, and the parts are the whole."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.trainer.ledger import MOST_SCENARIOS, OTHERS, Kind, Ledger, length_class
from services.trainer.rows import build
from tests.support.calls import RULES, call, trajectory


def test_a_bias_toward_short_play_shows() -> None:
    """Long play is older when it is over: the ledger must tell it from short play."""
    ledger = Ledger()
    for _ in range(3):
        build(trajectory(call([1], [2])), RULES, ledger)
        build(trajectory(*(call([n], [n, n]) for n in range(1, 6)), model_version="1.0.0"), RULES, ledger)
    lengths = ledger.as_dict()["by_length"]
    assert list(lengths) == ["1", "4-7"]
    assert (lengths["1"]["trajectories.used"], lengths["1"].get("rows_dropped.stale")) == (3, None)
    assert (lengths["4-7"].get("trajectories.used"), lengths["4-7"]["rows_dropped.stale"]) == (None, 15)


@given(st.integers(0, 10_000))
def test_a_length_is_in_its_class(calls: int) -> None:
    low, _, high = length_class(calls).partition("-")
    assert int(low) <= calls <= int(high or low)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2 * MOST_SCENARIOS).map(str),
            st.integers(0, 20),
            st.sampled_from(["read", "used"]),
            st.integers(0, 3),
        ),
        max_size=300,
    )
)
def test_by_scenario_and_by_length_add_up_to_the_whole(counted: list[tuple[str, int, str, int]]) -> None:
    ledger = Ledger()
    for scenario, calls, name, count in counted:
        ledger.add("trajectories", name, Kind(scenario, length_class(calls)), count)
    counts = ledger.as_dict()
    for table in ("by_scenario", "by_length"):
        total = sum((Counter(cell) for cell in counts[table].values()), Counter[str]())
        assert total == Counter({f"trajectories.{name}": count for name, count in counts["trajectories"].items()})
    assert len(counts["by_scenario"]) <= MOST_SCENARIOS + 1


def test_scenarios_beyond_the_listed_are_summed() -> None:
    ledger = Ledger()
    for scenario in range(MOST_SCENARIOS + 7):
        ledger.add("trajectories", "read", Kind(f"s{scenario}", "1"))
    ledger.add("trajectories", "read", Kind("s9999", "1"), 5)
    listed = ledger.as_dict()["by_scenario"]
    assert (len(listed), listed[OTHERS], listed["s9999"]) == (
        MOST_SCENARIOS + 1, {"trajectories.read": 8}, {"trajectories.read": 5},
    )  # fmt: skip
