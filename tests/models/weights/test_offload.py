"""Layers that visit the device: the same results, in an order that never reads stale weights."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from models.weights.gguf.format import QuantType
from models.weights.offload import LayerOffloader, offload
from models.weights.packed.linear import PackedLinear
from models.weights.transfers import CudaTransfers
from tests.models.weights.packed.blocks import random_packed

CPU = torch.device("cpu")


def blocks_of_a_model(count: int) -> list[nn.Module]:
    """Blocks of two sizes with parameters, buffers and packed weights."""
    torch.manual_seed(0)
    return [
        nn.Sequential(
            nn.Linear(32, 32),
            nn.LayerNorm(32),
            PackedLinear(random_packed(QuantType.Q8_0, 32, 32, seed=n), torch.randn(32)),
            *([nn.Linear(32, 32, bias=False)] if n % 2 else []),
        ).requires_grad_(False)
        for n in range(count)
    ]


def run(blocks, x):
    for block in blocks:
        x = block(x)
    return x


@dataclass(eq=False)
class Event:
    """Happens when it is reached in the queue of copies, or was made by computing."""

    happened: bool = False


@dataclass
class LateTransfers:
    """A queue of copies as slow as it may be: nothing is copied before somebody waits for it.

    What a copy overwrites is spoiled at once, so that a computation that still reads it, or that
    does not wait for its own weights, gives NaN.
    """

    log: list[str] = field(default_factory=list)
    queue: list[tuple[Event, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    marks: list[Event] = field(default_factory=list)
    last_use: dict[int, Event] = field(default_factory=dict)

    def mark(self):
        event = Event(happened=True)
        self.marks.append(event)
        self.log.append("mark")
        return event

    def copy(self, target, source, *, after):
        assert after in self.marks
        self.log.append("copy")
        done = Event()
        target.fill_(255)
        self.queue.append((done, target, source))
        return done

    def wait(self, event):
        self.log.append("wait")
        while not event.happened:
            done, target, source = self.queue.pop(0)
            target.copy_(source)
            done.happened = True


@pytest.mark.parametrize(
    ("count", "resident"),
    [(count, resident) for count in range(1, 6) for resident in range(min(count, 2) + 1)],
)
def test_offloaded_blocks_compute_what_resident_ones_do(count, resident):
    x = torch.randn(3, 32)
    expected = run(blocks_of_a_model(count), x)
    for transfers in (None, LateTransfers()):
        blocks = blocks_of_a_model(count)
        if transfers is None:
            offload(blocks, CPU, resident=resident)
        else:
            LayerOffloader(blocks, CPU, transfers, resident=resident)
        for _ in range(3):
            assert torch.equal(run(blocks, x), expected)


def test_the_next_block_is_fetched_before_a_block_computes():
    transfers = LateTransfers()
    blocks = blocks_of_a_model(3)
    LayerOffloader(blocks, CPU, transfers)
    transfers.log.clear()
    for n, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, n=n: transfers.log.append(f"compute {n}"))
    run(blocks, torch.randn(3, 32))
    first = ["copy", "wait", "copy", "compute 0", "mark"]
    others = [line for n in (1, 2) for line in ("wait", "copy", f"compute {n}", "mark")]
    assert transfers.log == first + others


def test_in_the_second_step_the_first_block_is_there_already():
    transfers = LateTransfers()
    blocks = blocks_of_a_model(3)
    LayerOffloader(blocks, CPU, transfers)
    run(blocks, torch.randn(3, 32))
    transfers.log.clear()
    blocks[0](torch.randn(3, 32))
    assert transfers.log == ["wait", "copy", "mark"]


def test_a_copy_waits_for_the_last_computation_out_of_its_slot():
    class Recording(LateTransfers):
        def copy(self, target, source, *, after):
            owner = target.data_ptr()
            if owner in computed:
                assert after is computed[owner]
            return super().copy(target, source, after=after)

        def mark(self):
            event = super().mark()
            if current:
                computed[current.pop()] = event
            return event

    computed, current = {}, []
    transfers = Recording()
    blocks = blocks_of_a_model(3)
    LayerOffloader(blocks, CPU, transfers)
    for block in blocks:
        # The first tensor of a block lies at the start of its slot.
        block.register_forward_pre_hook(lambda block, _: current.append(block[0].weight.data_ptr()))
    for _ in range(3):
        run(blocks, torch.randn(3, 32))
    assert len(computed) == 2


def test_a_step_broken_off_leaves_the_next_one_right():
    x = torch.randn(3, 32)
    blocks = blocks_of_a_model(4)
    expected = run(blocks_of_a_model(4), x)
    LayerOffloader(blocks, CPU, LateTransfers())
    rests_at = blocks[2][0].weight.data_ptr()
    run(blocks[:2], x)
    with pytest.raises(RuntimeError):
        blocks[2](torch.randn(3, 31))
    assert blocks[2][0].weight.data_ptr() == rests_at
    assert torch.equal(run(blocks, x), expected)


def test_blocks_called_in_any_order_compute_the_same():
    x = torch.randn(3, 32)
    blocks = blocks_of_a_model(4)
    expected = [block(x) for block in blocks_of_a_model(4)]
    LayerOffloader(blocks, CPU, LateTransfers())
    for n in (3, 3, 0, 2, 1, 1, 3, 0):
        assert torch.equal(blocks[n](x), expected[n])


def test_two_slots_of_the_largest_block_are_all_the_device_holds():
    blocks = blocks_of_a_model(6)
    sizes = [
        sum(t.numel() * t.element_size() for t in (*block.parameters(), *block.buffers()))
        for block in blocks
    ]
    offloader = offload(blocks, CPU)
    # Tensors start at multiples of 256 bytes.
    assert 2 * max(sizes) <= offloader.device_bytes <= 2 * (max(sizes) + 8 * 256)
    assert sum(sizes) <= offloader.host_bytes <= sum(sizes) + 6 * 8 * 256


def test_at_rest_the_weights_of_a_block_are_readable_and_unchanged():
    blocks = blocks_of_a_model(4)
    before = [{k: v.clone() for k, v in block.state_dict().items()} for block in blocks]
    offload(blocks, CPU, resident=1)
    run(blocks, torch.randn(3, 32))
    for block, state in zip(blocks, before, strict=True):
        for name, tensor in block.state_dict().items():
            assert torch.equal(tensor, state[name])
        assert {type(p) for p in block.parameters()} == {nn.Parameter}


def test_resident_blocks_are_spread_evenly():
    blocks = blocks_of_a_model(6)
    kept = [block[0].weight.data_ptr() for block in blocks]
    offload(blocks, CPU, resident=3)
    stayed = [block[0].weight.data_ptr() == at for block, at in zip(blocks, kept, strict=True)]
    assert stayed == [False, True] * 3


def test_steps_in_and_out_of_inference_mode_agree():
    x = torch.randn(3, 32)
    blocks = blocks_of_a_model(3)
    expected = run(blocks_of_a_model(3), x)
    with torch.inference_mode():
        offload(blocks, CPU)
        assert torch.equal(run(blocks, x), expected)
    assert torch.equal(run(blocks, x), expected)


@pytest.mark.parametrize("resident", [-1, 4])
def test_more_resident_blocks_than_there_are_is_refused(resident):
    with pytest.raises(ValueError, match=rf"resident is {resident}, expected 0\.\.3"):
        offload(blocks_of_a_model(3), CPU, resident=resident)


def test_cuda_copies_run_on_their_own_stream_between_two_events(monkeypatch):
    log = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def record_event(self):
            log.append(f"{self.name} records")
            return f"event of {self.name}"

        def wait_event(self, event):
            log.append(f"{self.name} waits for {event}")

    class Target:
        def copy_(self, source, *, non_blocking):
            log.append(f"copy {source}, non-blocking {non_blocking}, on {active[-1].name}")

        def record_stream(self, stream):
            log.append(f"memory is kept for {stream.name}")

    @contextmanager
    def stream(chosen):
        active.append(chosen)
        yield
        active.pop()

    active = [Stream("compute")]
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: active[-1])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    transfers = CudaTransfers(torch.device("cuda:0"))
    free = transfers.mark()
    transfers.wait(transfers.copy(Target(), "weights", after=free))
    assert log == [
        "compute records",
        "side waits for event of compute",
        "copy weights, non-blocking True, on side",
        "memory is kept for side",
        "side records",
        "compute waits for event of side",
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_offloaded_blocks_compute_what_resident_ones_do():
    device = torch.device("cuda")
    x = torch.randn(3, 32, device=device)
    expected = run([block.to(device) for block in blocks_of_a_model(5)], x)
    blocks = blocks_of_a_model(5)
    offload(blocks, device, resident=1)
    for _ in range(3):
        assert torch.equal(run(blocks, x), expected)
