"""How sizes are printed."""

from __future__ import annotations

import pytest

from denoised.sizes import format_size


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 KB"),
        (2_340_000, "2.34 MB"),
        (11_600_000_000, "11.60 GB"),
        (1_200_000_000_000, "1200.00 GB"),
    ],
)
def test_a_size_gets_the_decimal_unit_that_suits_it(nbytes: int, text: str) -> None:
    assert format_size(nbytes) == text
