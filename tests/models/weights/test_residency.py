"""Which residency a model gets from its sizes and the memory that is free."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.weights.residency import choose_residency

GB = 10**9
WAN_14B = {"packed_bytes": 12 * GB, "bf16_bytes": 35 * GB, "fp8_bytes": 18 * GB}


def plan(free, *, wanted=None, layers=48, has_fp8=True, activations=4):
    return choose_residency(
        **WAN_14B,
        activations_bytes=activations * GB,
        free_bytes=int(free * GB),
        has_fp8=has_fp8,
        wanted=wanted,
        layers=layers,
    )


def test_with_room_the_weights_are_converted_once():
    chosen = plan(80)
    assert (chosen.mode, chosen.offload_layers) == ("bf16", 0)


def test_with_less_room_they_stay_packed():
    chosen = plan(24)
    assert (chosen.mode, chosen.offload_layers) == ("packed", 0)


def test_fp8_is_never_chosen_unasked():
    assert {plan(free).mode for free in (10, 20, 24, 30, 80, 140)} == {"packed", "bf16"}


def test_with_too_little_room_some_layers_stay_in_host_memory():
    chosen = plan(12)
    assert chosen.mode == "packed"
    assert 0 < chosen.offload_layers < 48


@pytest.mark.parametrize("wanted", ["packed", "bf16", "fp8"])
def test_what_is_asked_for_is_taken_and_offloaded_as_far_as_needed(wanted):
    assert plan(80, wanted=wanted).mode == wanted
    assert plan(80, wanted=wanted).offload_layers == 0
    tight = plan(17, wanted=wanted)
    assert tight.mode == wanted
    assert (tight.offload_layers > 0) == (wanted != "packed")


def test_fp8_on_a_device_without_it_is_refused():
    with pytest.raises(ValueError, match=r"residency fp8 was asked for.*8\.9"):
        plan(80, wanted="fp8", has_fp8=False)


def test_what_fits_in_no_way_is_refused_with_the_numbers():
    with pytest.raises(MemoryError, match=r"packed weights take 12\.0 GB.*4\.0 GB.*4\.2 GB.*48"):
        plan(4.2)


def test_without_a_host_to_offload_to_nothing_is_offloaded():
    with pytest.raises(MemoryError, match=r"10\.0 GB are free$"):
        plan(10, layers=0)


def test_offloading_every_layer_frees_no_more_than_there_is():
    with pytest.raises(MemoryError):
        choose_residency(
            packed_bytes=1,
            bf16_bytes=1,
            fp8_bytes=1,
            activations_bytes=0,
            free_bytes=0,
            has_fp8=False,
            wanted=None,
            layers=3,
        )


def test_the_reason_names_mode_cause_and_sizes():
    assert plan(80).reason == "bf16 chosen by free memory: 35.0 GB of weights in 72.0 GB of room"
    assert plan(12).reason == (
        "packed chosen by free memory: 12.0 GB of weights in 7.4 GB of room, 21 of 48 layers "
        "offloaded"
    )


@given(
    sizes=st.tuples(*[st.integers(1, 10**11)] * 3),
    activations=st.integers(0, 10**10),
    free=st.integers(0, 2 * 10**11),
    wanted=st.sampled_from([None, "packed", "bf16", "fp8"]),
    layers=st.integers(0, 60),
)
def test_every_plan_fits_and_offloads_no_more_than_it_must(
    sizes, activations, free, wanted, layers
):
    weights = dict(zip(("packed", "bf16", "fp8"), sizes, strict=True))

    def needed(mode, offloaded):
        layer = weights[mode] / max(layers, 1)
        slots = 2 * layer if offloaded else 0
        return weights[mode] - offloaded * layer + slots + activations

    # Room, layers and slots are whole bytes: what does not fit may miss by a few of them.
    least = free * 0.95 - 4
    try:
        chosen = choose_residency(
            packed_bytes=weights["packed"],
            bf16_bytes=weights["bf16"],
            fp8_bytes=weights["fp8"],
            activations_bytes=activations,
            free_bytes=free,
            has_fp8=True,
            wanted=wanted,
            layers=layers,
        )
    except MemoryError:
        last = wanted or "packed"
        assert min(needed(last, 0), needed(last, layers)) > least
        return
    assert wanted in (None, chosen.mode)
    assert 0 <= chosen.offload_layers <= layers
    assert needed(chosen.mode, chosen.offload_layers) <= free
    if chosen.offload_layers > 1:
        # With a layer fewer in host memory the plan would not leave its margin.
        assert needed(chosen.mode, chosen.offload_layers - 1) > least
