"""An engine put together from the settings: what reads, stores and checkpoints, and the threads
for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from config.settings import Settings
from jobs.blobs import FileBlobStore
from jobs.lease import LeaseClient
from workers.background import BackgroundThread
from workers.batch_limits import BatchLimits
from workers.checkpoints import Checkpoints
from workers.device import Device
from workers.engine import Engine
from workers.inputs import InputReader
from workers.memory_ceilings import MemoryCeilings
from workers.parking import default_budget
from workers.patient_blobs import Patience, PatientBlobs, PatientReads
from workers.reading import ReadingQueue
from workers.residency import Residents
from workers.results import ResultWriter
from workers.sink import Sink
from workers.storing import StoringQueue

READERS = 2
"""Jobs whose sources are decoded, or wait decoded, at a time: their frames take host memory."""


def engine_of(
    settings: Settings,
    device: Device,
    residents: Residents,
    *,
    sink: Sink,
    lease: LeaseClient,
    alive: Callable[[], None],
) -> Engine:
    """The engine of a worker process, which serves `residents` and reports to `sink`.

    `lease` moves the pointers to checkpoints; `alive` is called between two pieces of work.
    """
    stuck_seconds = settings.step_timeout_seconds
    blobs = FileBlobStore(settings.blob_dir)
    # They give up before storing or reading counts as stuck.
    patience = Patience(stuck_seconds / 2)
    ceilings = MemoryCeilings(settings.data_dir / "memory_ceilings.json", device.model_name)
    waiting = settings.waiting_state_bytes
    return Engine(
        residents.pipelines,
        sink,
        ReadingQueue(
            InputReader(blobs, max_frames=settings.max_file_frames),
            [BackgroundThread(f"reading-{number}") for number in range(READERS)],
            stuck_seconds=stuck_seconds,
            clock=time.monotonic,
        ),
        StoringQueue(
            ResultWriter(PatientBlobs(blobs, patience), residents.recipes),
            BackgroundThread("storing"),
            stuck_seconds=stuck_seconds,
            clock=time.monotonic,
        ),
        Checkpoints(
            PatientReads(blobs, patience),
            lease,
            residents.recipes,
            BackgroundThread("checkpoints"),
            every_seconds=settings.checkpoint_seconds,
        ),
        device,
        BatchLimits(settings.max_batch_images, ceilings),
        capacity=2 * settings.max_batch_images,
        max_attempts=settings.max_attempts,
        preview_seconds=settings.preview_seconds,
        alive=alive,
        waiting_bytes=default_budget(device) if waiting is None else waiting,
    )
