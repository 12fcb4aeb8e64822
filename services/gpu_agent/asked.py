"""What may be asked of the agent. Pure: bytes in, a request out, or a refusal that names the field."""

import math

import msgspec

from shared.errors import UNREADABLE, Malformed, malformed
from shared.gpu import WINDOW_S_MAX, GpuReportRequest

REQUEST_BYTES_MAX = 4096

_LIMITS = {"window_s": WINDOW_S_MAX, "utilization_above_pct": 100.0, "memory_above_pct": 100.0}


def asked(data: bytes) -> GpuReportRequest:
    """Read a request; an empty one asks for everything. Malformed names the field at fault."""
    if len(data) > REQUEST_BYTES_MAX:
        raise Malformed(f"a request is at most {REQUEST_BYTES_MAX} bytes, this has {len(data)}")
    if not data.strip():
        return GpuReportRequest()
    try:
        request = msgspec.json.decode(data, type=GpuReportRequest)
    except UNREADABLE as error:
        raise malformed(error) from error
    for field, most in _LIMITS.items():
        value = getattr(request, field)
        least_is_allowed = field != "window_s"
        if not (math.isfinite(value) and (value > 0 or (value == 0 and least_is_allowed)) and value <= most):
            raise Malformed(
                f"{field} must be {'0 to' if least_is_allowed else 'above 0 and at most'} {most:g}", field=field
            )
    return request
