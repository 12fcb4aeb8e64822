"""Statistics over the window: pure, so every case is a table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gpu_agent.reading import Facts, GpuSample, Reading
from services.gpu_agent.window import XIDS_KEPT, GpuWindow, percent, percentile, reason_names, stat, throttle
from shared.gpu import GpuProcess, GpuReport, GpuReportRequest, Stat, XidCount


def sample(
    reading: Reading | None, *, facts: Facts | None = None, xids: tuple[int, ...] = (), hears_xids: bool = True
) -> GpuSample:
    return GpuSample("GPU-a", 0, "Card", None, reading, facts, list(xids), hears_xids)


def window_of(*readings: Reading) -> GpuWindow:
    window = GpuWindow(900.0, 10_000)
    for reading in readings:
        window.add(reading.t_s, sample(reading))
    return window


def report(window: GpuWindow, now_s: float, *, present: bool = True, **asked: float) -> GpuReport:
    made = window.report(now_s, GpuReportRequest(**asked), present=present)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, 1), (2, 2), (19, 19), (20, 19), (21, 20), (100, 95), (101, 96), (900, 855)],
)
def test_the_p95_is_the_nearest_rank(count: int, expected: int) -> None:
    assert percentile([float(value) for value in range(1, count + 1)], 0.95) == expected


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200))
def test_a_percentile_was_observed_and_covers_its_share(values: list[float]) -> None:
    found = percentile(sorted(values), 0.95)
    assert found in values
    assert sum(value <= found for value in values) >= 0.95 * len(values)
    assert sum(value < found for value in values) < 0.95 * len(values)


def test_a_stat_tells_now_mean_p95_max_and_the_share_above() -> None:
    assert stat([10.0, 90.0, 80.0, 20.0], above=80.0) == Stat(
        now=20.0, mean=50.0, p95=90.0, max=90.0, samples=4, above=80.0, share_above=0.25
    )


def test_exactly_the_threshold_is_not_above_it() -> None:
    assert stat([80.0, 80.0], above=80.0).share_above == 0.0


def test_nulls_take_no_part_and_a_null_at_the_end_is_a_null_now() -> None:
    assert stat([10.0, None, 30.0, None]) == Stat(now=None, mean=20.0, p95=30.0, max=30.0, samples=2)


def test_no_value_at_all_is_all_null() -> None:
    assert stat([None, None], above=80.0) == Stat(above=80.0)
    assert stat([]) == Stat()


@given(st.lists(st.integers(0, 100), min_size=1, max_size=300))
def test_the_mean_of_equal_samples_is_that_value_to_the_bit(values: list[int]) -> None:
    """A mean of exactly 80 must not be pushed over the threshold by rounding."""
    assert stat([80.0] * len(values)).mean == 80.0
    told = stat([float(value) for value in values])
    assert told.mean is not None
    assert min(values) <= told.mean <= max(values)


def test_throttle_bits_have_names_and_unknown_ones_a_number() -> None:
    assert reason_names(0) == []
    assert reason_names(0x44) == ["sw_power_cap", "hw_thermal_slowdown"]
    assert reason_names(1 << 40) == ["bit_40"]


def test_throttling_is_counted_by_reason_and_kind() -> None:
    told = throttle([0x1, 0x24, None, 0x20])
    assert told is not None
    assert told.now == ["sw_thermal_slowdown"]
    assert told.samples == 3
    assert [(one.reason, one.kind, one.samples) for one in told.seen] == [
        ("sw_thermal_slowdown", "thermal", 2),
        ("gpu_idle", "benign", 1),
        ("sw_power_cap", "power", 1),
    ]
    assert throttle([None]) is None


@pytest.mark.parametrize(("part", "whole", "expected"), [(1.0, 4.0, 25.0), (None, 4.0, None), (1.0, 0.0, None)])
def test_a_percentage_of_nothing_is_null(part: float | None, whole: float | None, expected: float | None) -> None:
    assert percent(part, whole) == expected


def test_the_window_forgets_what_is_older_than_it() -> None:
    window = window_of(*(Reading(t_s=float(t), utilization_pct=100.0 if t < 100 else 0.0) for t in range(1000)))
    told = report(window, 999.0).utilization_pct
    assert (told.max, told.samples) == (0.0, 900)


def test_a_shorter_window_looks_at_less() -> None:
    window = window_of(*(Reading(t_s=float(t), utilization_pct=float(t)) for t in range(100)))
    told = report(window, 99.0, window_s=10.0).utilization_pct
    assert (told.samples, told.mean) == (10, 94.5)


def test_the_window_is_bounded_in_samples_whatever_the_clock_says() -> None:
    window = GpuWindow(900.0, 50)
    for _ in range(1000):
        window.add(5.0, sample(Reading(t_s=5.0, utilization_pct=1.0)))
    assert report(window, 5.0).utilization_pct.samples == 50


def test_memory_is_told_in_bytes_and_percent() -> None:
    window = window_of(Reading(t_s=0.0, memory_used_bytes=3.0, memory_total_bytes=4.0))
    told = report(window, 0.0)
    assert (told.memory_total_bytes, told.memory_used_bytes.now, told.memory_pct.now) == (4, 3.0, 75.0)


def test_a_lost_card_keeps_its_past_and_has_no_present() -> None:
    window = window_of(Reading(t_s=0.0, utilization_pct=90.0, throttle_bits=4))
    window.add(0.5, sample(None, facts=None))
    told = report(window, 0.5, present=False)
    assert told.lost
    assert (told.utilization_pct.now, told.utilization_pct.mean) == (None, 90.0)
    assert told.throttle is not None
    assert (told.throttle.now, told.throttle.seen[0].reason) == ([], "sw_power_cap")
    assert told.processes is None


def test_the_last_facts_stand_until_the_next() -> None:
    window = GpuWindow(900.0, 10)
    process = GpuProcess(1, "init")
    window.add(0.0, sample(Reading(t_s=0.0), facts=Facts(power_limit_w=300.0, processes=[process])))
    window.add(1.0, sample(Reading(t_s=1.0)))
    told = report(window, 1.0)
    assert (told.power_limit_w, told.processes) == (300.0, [process])


def test_xids_are_counted_over_the_window_and_bounded() -> None:
    window = GpuWindow(900.0, 10)
    window.add(0.0, sample(Reading(t_s=0.0), xids=(79,)))
    window.add(800.0, sample(Reading(t_s=800.0), xids=(31, 31)))
    assert report(window, 800.0).xids == [XidCount(31, 2), XidCount(79, 1)]
    assert report(window, 800.0, window_s=60.0).xids == [XidCount(31, 2)]
    window.add(1000.0, sample(Reading(t_s=1000.0), xids=(13,) * (XIDS_KEPT + 5)))
    assert report(window, 1000.0).xids == [XidCount(13, XIDS_KEPT)]


def test_xids_of_a_card_that_does_not_tell_them_are_null() -> None:
    window = GpuWindow(900.0, 10)
    window.add(0.0, sample(Reading(t_s=0.0), hears_xids=False))
    assert report(window, 0.0).xids is None
