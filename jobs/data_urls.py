"""Files that come inside a request: `data:image/png;base64,...` (RFC 2397)."""

from __future__ import annotations

import base64
import binascii


def decode_data_url(url: str) -> bytes:
    """The bytes of a data URL in base64. Raises ValueError, a line that goes after a field's name.

    The media type it gives is not looked at: what the bytes are is found out by decoding them.
    """
    header, comma, data = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise ValueError("must be a data URL in base64, `data:image/png;base64,...`")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"is not valid base64: {str(error).lower()}") from None
