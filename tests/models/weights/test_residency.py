"""Which residency a model gets from its sizes and the memory that is free."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.weights.residency import choose_residency

GB = 10**9
WAN_14B = {"packed_bytes": 12 * GB, "bf16_bytes": 35 * GB, "fp8_bytes": 18 * GB}


def plan(free, *, wanted=None, layers=48, has_fp8=True, activations=4, mapped=0):
    return choose_residency(
        **WAN_14B,
        activations_bytes=activations * GB,
        free_bytes=int(free * GB),
        has_fp8=has_fp8,
        wanted=wanted,
        layers=layers,
        mapped_bytes=mapped * GB,
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


def test_what_was_asked_for_is_loaded_though_the_default_size_is_too_large_for_it():
    chosen = plan(4.2, wanted="packed")
    assert (chosen.mode, chosen.offload_layers) == ("packed", 48)
    assert chosen.reason == (
        "packed asked for: 12.0 GB of weights in 4.0 GB of room, all 48 layers offloaded; "
        "a step of the default size takes 4.0 GB"
    )
    with pytest.raises(MemoryError):
        plan(0.5, wanted="packed")


def test_on_a_host_the_size_of_a_step_steers_but_does_not_forbid():
    assert plan(36, layers=0).mode == "packed"
    assert plan(13, layers=0, activations=1000).mode == "packed"
    with pytest.raises(MemoryError, match=r"bf16 weights take 35\.0 GB, but 30\.0 GB are free$"):
        plan(30, layers=0, wanted="bf16")


def test_pages_of_a_file_take_no_memory_from_a_host_but_converted_weights_do():
    chosen = plan(8, layers=0, mapped=11)
    assert (chosen.mode, chosen.offload_layers) == ("packed", 0)
    assert chosen.reason == (
        "packed chosen by free memory: 12.0 GB of weights in 7.6 GB of room, 11.0 GB of it pages "
        "of the file; a step of the default size takes 4.0 GB of the rest"
    )
    with pytest.raises(MemoryError, match=r"packed weights take 1\.0 GB, but 1\.0 GB are free$"):
        plan(1, layers=0, mapped=11)
    with pytest.raises(MemoryError):
        plan(8, layers=0, mapped=11, wanted="bf16")


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
    mapped=st.integers(0, 10**11),
)
def test_every_plan_fits_and_offloads_no_more_than_it_must(
    sizes, activations, free, wanted, layers, mapped
):
    weights = dict(zip(("packed", "bf16", "fp8"), sizes, strict=True))

    def needed(mode, offloaded, activations=activations):
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
            mapped_bytes=mapped,
        )
    except MemoryError:
        last = wanted or "packed"
        # Not even without a step of the default size, where that is not asked for.
        step = activations if layers and not wanted else 0
        in_file = mapped if last == "packed" and not layers else 0
        assert min(needed(last, 0, step) - in_file, needed(last, layers, step)) > least
        return
    assert wanted in (None, chosen.mode)
    assert 0 <= chosen.offload_layers <= layers
    if layers == 0 and chosen.mode == "packed":
        assert needed("packed", 0, 0) - mapped <= free
        return
    if needed(chosen.mode, chosen.offload_layers) > free:
        # Only what cannot be helped: asked for, or in a host's memory.
        assert wanted or layers == 0
        assert chosen.offload_layers == layers
        assert needed(chosen.mode, chosen.offload_layers, 0) <= free
        return
    if chosen.offload_layers > 1:
        # With a layer fewer in host memory the plan would not leave its margin.
        assert needed(chosen.mode, chosen.offload_layers - 1) > least
