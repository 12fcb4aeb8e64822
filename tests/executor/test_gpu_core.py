"""The report of all hosts: pure, so what counts as a hotspot and what an agent may claim are tables."""

import itertools
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.executor.tasks.gpu_checks import GPUS_A_HOST_MAX
from services.executor.tasks.gpu_core import NOTES_MAX, assemble
from services.executor.tasks.gpu_words import GpuReportDocument, Hotspot
from shared.gpu import (
    EccCounts,
    GpuHostReport,
    GpuProcess,
    GpuReport,
    Stat,
    Throttle,
    ThrottleSeen,
    XidCount,
    throttle_kind,
)

AT = "2026-11-21T09:30:00.000000Z"


def level(value: float | None) -> Stat:
    return Stat(now=value, mean=value, p95=value, max=value, samples=0 if value is None else 900)


def card(index: int = 0, *, busy: float | None = 10.0, memory: float | None = 20.0, **more: Any) -> GpuReport:
    given: dict[str, Any] = {"name": "Card", "utilization_pct": level(busy), "memory_pct": level(memory)} | more
    return GpuReport(index=index, uuid=f"GPU-{index}", **given)


def host(name: str = "tower", *gpus: GpuReport, **more: Any) -> GpuHostReport:
    return GpuHostReport(**({"host": name, "at": AT, "state": "ok", "nvml": "ok", "gpus": list(gpus)} | more))


def held_down(*reasons: tuple[str, float]) -> Throttle:
    seen = [ThrottleSeen(reason, throttle_kind(reason), int(900 * share), share) for reason, share in reasons]
    return Throttle(now=[], seen=seen, samples=900)


def document(*reports: GpuHostReport, missing: list[str] | None = None, **more: Any) -> GpuReportDocument:
    return assemble(reports, missing or [], at=AT, **more)


def spots(gpu: GpuReport, **more: Any) -> list[tuple[str, float]]:
    return [(spot.kind, spot.value) for spot in document(host("tower", gpu), **more).hotspots]


# -- hotspots


@pytest.mark.parametrize(
    ("mean", "hot"),
    [(0.0, False), (79.9, False), (80.0, False), (math.nextafter(80.0, 81.0), True), (80.1, True), (100.0, True)],
)
def test_a_hotspot_is_a_mean_strictly_above_the_threshold(mean: float, hot: bool) -> None:
    assert spots(card(busy=mean)) == ([("utilization", mean)] if hot else [])


def test_the_threshold_is_a_parameter() -> None:
    assert spots(card(busy=60.0), utilization_threshold_pct=50.0) == [("utilization", 60.0)]
    assert spots(card(busy=85.0), utilization_threshold_pct=90.0) == []
    assert spots(card(memory=50.0), memory_threshold_pct=49.0) == [("memory", 50.0)]


def test_a_peak_does_not_make_a_hotspot_of_a_quiet_card() -> None:
    assert spots(card(utilization_pct=Stat(now=100.0, mean=12.0, p95=95.0, max=100.0, samples=900))) == []


@pytest.mark.parametrize(
    ("now", "mean", "value"),
    [(90.0, 90.0, None), (90.1, 20.0, 90.1), (20.0, 95.0, 95.0), (None, 95.0, 95.0), (None, None, None)],
)
def test_memory_is_hot_when_it_is_full_now_or_was_on_the_mean(
    now: float | None, mean: float | None, value: float | None
) -> None:
    told = spots(card(memory_pct=Stat(now=now, mean=mean, p95=mean, max=mean, samples=900)))
    assert told == ([] if value is None else [("memory", value)])


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ([], []),
        ([("gpu_idle", 1.0), ("applications_clocks_setting", 1.0), ("sync_boost", 0.5)], []),
        ([("sw_power_cap", 0.25)], [("power_throttle", 25.0)]),
        ([("hw_power_brake_slowdown", 0.5)], [("power_throttle", 50.0)]),
        ([("sw_thermal_slowdown", 0.5), ("hw_thermal_slowdown", 0.25)], [("thermal_throttle", 50.0)]),
        (
            [("hw_thermal_slowdown", 0.5), ("sw_power_cap", 1.0)],
            [("thermal_throttle", 50.0), ("power_throttle", 100.0)],
        ),
        ([("hw_slowdown", 0.5), ("hw_power_brake_slowdown", 0.5)], [("power_throttle", 50.0)]),
        ([("hw_slowdown", 0.5)], [("thermal_throttle", 50.0)]),
        ([("sw_thermal_slowdown", 0.0)], []),
    ],
)
def test_heat_and_power_are_hotspots_and_idle_is_not(
    reasons: list[tuple[str, float]], expected: list[tuple[str, float]]
) -> None:
    assert spots(card(throttle=held_down(*reasons))) == expected


def test_a_slowdown_of_unknown_cause_says_that_it_is_one() -> None:
    (spot,) = document(host("tower", card(throttle=held_down(("hw_slowdown", 0.5))))).hotspots
    assert "the driver does not say which" in spot.why


def test_a_hotspot_names_its_card_and_says_why() -> None:
    assert document(host("tower", card(0), card(1, busy=93.25))).hotspots == [
        Hotspot(
            host="tower",
            gpu=1,
            uuid="GPU-1",
            name="Card",
            kind="utilization",
            value=93.25,
            threshold=80.0,
            why="mean utilization 93.2 % over 900 samples, above 80 %",
        )
    ]


def test_a_card_can_be_hot_in_every_way_at_once() -> None:
    everything = card(busy=99.0, memory=99.0, throttle=held_down(("hw_thermal_slowdown", 1.0), ("sw_power_cap", 1.0)))
    kinds = [kind for kind, _ in spots(everything)]
    assert kinds == ["utilization", "memory", "thermal_throttle", "power_throttle"]


def test_a_card_that_was_hot_before_it_was_lost_is_told_with_both() -> None:
    (spot,) = document(host("tower", card(busy=95.0, lost=True))).hotspots
    assert spot.why.endswith("the GPU is lost now")


# -- status


def test_all_is_well() -> None:
    told = document(host("tower", card(0), card(1)), host("attic", card(0)))
    assert (told.status, told.gpu_count, told.timestamp) == ("success", 3, AT)
    assert [(gpu.host, gpu.index) for gpu in told.gpus] == [("attic", 0), ("tower", 0), ("tower", 1)]
    assert [one.host for one in told.hosts] == ["attic", "tower"]


def test_hosts_without_gpus_are_no_gpus_available() -> None:
    bare = host("attic", state="absent", nvml="no NVIDIA driver")
    assert document(bare).status == "no_gpus_available"
    assert document().status == "no_gpus_available"
    assert document(bare, host("tower", card())).status == "success"


def test_a_host_that_did_not_answer_makes_it_partial() -> None:
    told = document(host("tower", card()), missing=["attic", "attic", "cellar", "tower"])
    assert (told.status, told.missing_hosts) == ("partial", ["attic", "cellar"])
    assert document(missing=["attic"]).status == "partial"


def test_a_lost_card_makes_it_partial() -> None:
    told = document(host("tower", card(0, lost=True), card(1)))
    assert (told.status, told.gpu_count) == ("partial", 2)


@pytest.mark.parametrize("state", ["failing", "stalled"])
def test_a_driver_in_trouble_makes_it_partial_and_says_why(state: str) -> None:
    told = document(host("tower", state=state, nvml="NVML does not start: version mismatch"))
    assert told.status == "partial"
    assert told.notes == ["tower: NVML does not start: version mismatch"]


def test_the_order_of_arrival_does_not_matter() -> None:
    reports = [host("b", card(1), card(0)), host("a", card(0)), host("b", card(0, busy=99.0))]
    pages = {msgspec.json.encode(document(*order)) for order in itertools.permutations(reports)}
    assert len(pages) == 1


def test_two_agents_of_one_name_count_once_and_are_told() -> None:
    told = document(host("tower", card(0)), host("tower", card(0), card(1)))
    assert len(told.hosts) == 1
    assert told.notes == ["tower: more than one agent answered, one answer is used"]


# -- what an agent may claim


@pytest.mark.parametrize("wrong", [400.0, -1.0, math.nan, math.inf, -math.inf])
def test_an_impossible_value_is_null_with_a_note_and_no_hotspot(wrong: float) -> None:
    told = document(host("tower", card(busy=wrong, memory=50.0)))
    assert told.gpus[0].utilization_pct.mean is None
    assert told.gpus[0].memory_pct.mean == 50.0
    assert told.hotspots == []
    assert any("tower GPU 0: utilization_pct.mean is" in note for note in told.notes)


def test_every_number_that_an_agent_can_give_is_checked() -> None:
    low = Stat(now=-1e9, mean=-1e9, p95=-1e9, max=-1e9, samples=-3, above=-1e9, share_above=-1e9)
    stats = [name for name in GpuReport.__struct_fields__ if isinstance(getattr(card(), name), Stat)]
    wrong = replace(
        card(index=-1),
        **dict.fromkeys(stats, low),
        memory_total_bytes=-5,
        power_limit_w=-1.0,
        throttle=Throttle(["x"] * 999, [ThrottleSeen("sw_power_cap", "benign", -1, 9.0)], -1),
        ecc=EccCounts(-1, 2**70),
        xids=[XidCount(-1, 5), XidCount(79, -5), XidCount(31, 1)],
        processes=[GpuProcess(-4, "x"), GpuProcess(0, "x"), GpuProcess(7, "x", -1)],
    )
    told = document(host("tower", wrong, sampled_s=-1.0, window_s=math.nan, newest_sample_age_s=-1.0))
    (gpu,) = told.gpus
    assert gpu.index == 0
    assert {getattr(gpu, name) for name in stats} == {Stat()}
    assert gpu.memory_total_bytes is gpu.power_limit_w is None
    assert gpu.ecc == EccCounts()
    assert gpu.throttle is not None
    assert (gpu.throttle.seen, gpu.throttle.samples) == ([], 0)
    assert gpu.xids == [XidCount(31, 1)]
    assert gpu.processes == [GpuProcess(7, "x", None)]
    assert (told.hosts[0].sampled_s, told.hosts[0].window_s, told.hosts[0].newest_sample_age_s) == (0.0, 0.0, None)
    assert told.hotspots == []
    msgspec.json.decode(msgspec.json.encode(told), type=GpuReportDocument)


def test_an_agent_does_not_decide_what_a_reason_means() -> None:
    lie = Throttle(seen=[ThrottleSeen("gpu_idle", "thermal", 900, 1.0)], samples=900)
    assert spots(card(throttle=lie)) == []


def test_texts_are_bounded_and_cannot_write_on_a_terminal() -> None:
    told = document(host("tower\x1b[2J\n", card(name="A" * 1_000_000)))
    assert told.hosts[0].host == "tower�[2J�"
    assert told.gpus[0].name == "A" * 200


def test_an_agent_cannot_fill_the_page() -> None:
    crowd = host("tower", *(card(n, busy=999.0) for n in range(5000)))
    told = document(crowd)
    assert told.gpu_count == GPUS_A_HOST_MAX
    assert len(told.notes) == NOTES_MAX + 1
    assert "5000 GPUs claimed" in told.notes[0]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b'"tower"',
        b'{"host": "tower"}',
        b'{"host": 5, "at": "x", "state": "ok", "nvml": "ok"}',
        b'{"host": "tower", "at": "x", "state": "splendid", "nvml": "ok"}',
        b'{"host": "t", "at": "x", "state": "ok", "nvml": "ok", "gpus": [{"index": 0, "uuid": "u", "power_w": "hot"}]}',
        b'{"host": "t", "at": "x", "state": "ok", "nvml": "ok", "gpus": [{"index": 0.5, "uuid": "u"}]}',
        b'{"host": "t", "at": "x", "state": "ok", "nvml": "ok", "sampled_s": NaN}',
    ],
)
def test_wrong_types_are_refused_by_the_decoder(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(payload, type=GpuHostReport)


numbers = st.one_of(st.none(), st.floats(), st.floats(-10, 110))
stats = st.builds(
    Stat, now=numbers, mean=numbers, p95=numbers, max=numbers, samples=st.integers(-5, 2000), share_above=numbers
)
gpus = st.builds(
    GpuReport,
    index=st.integers(-2, 20),
    uuid=st.text(max_size=20),
    name=st.none() | st.text(max_size=20),
    lost=st.booleans(),
    utilization_pct=stats,
    memory_pct=stats,
    temperature_c=stats,
    throttle=st.none()
    | st.builds(
        Throttle,
        now=st.lists(st.text(max_size=5), max_size=3),
        seen=st.lists(
            st.builds(
                ThrottleSeen,
                reason=st.sampled_from(["sw_power_cap", "hw_slowdown", "hw_thermal_slowdown", "gpu_idle", "?"]),
                kind=st.sampled_from(["thermal", "power", "unknown_cause", "benign"]),
                samples=st.integers(-5, 2000),
                share=st.floats(),
            ),
            max_size=4,
        ),
    ),
)
hosts = st.builds(
    GpuHostReport,
    host=st.sampled_from(["a", "b", "c\n"]),
    at=st.text(max_size=10),
    state=st.sampled_from(["ok", "absent", "failing", "stalled"]),
    nvml=st.text(max_size=20),
    gpus=st.lists(gpus, max_size=4),
)


@given(st.lists(hosts, max_size=4), st.lists(st.text(max_size=5), max_size=3))
def test_whatever_the_agents_claim_the_report_holds_together(reports: list[GpuHostReport], missing: list[str]) -> None:
    told = assemble(reports, missing, at=AT)
    assert msgspec.json.decode(msgspec.json.encode(told), type=GpuReportDocument) == told
    assert told.gpu_count == len(told.gpus) == sum(one.gpu_count for one in told.hosts)
    assert told.status != "success" or (told.gpus and not told.missing_hosts)
    for spot in told.hotspots:
        assert spot.value > spot.threshold
        assert 0 <= spot.value <= 100
