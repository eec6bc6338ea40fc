"""`python -m tests.chaos`: apart from `run`, which the forkserver imports for every process."""

import sys

from tests.chaos.run import main

sys.exit(main())
