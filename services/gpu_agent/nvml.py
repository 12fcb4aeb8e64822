"""The one file that opens NVML, through the unmodified binding `pynvml`: a thin shell around `fields`.

How NVML behaves, and what follows from it:

- No library or no driver is a plain fact about a host, not an error, and may change at any time: opening is
  tried again every `REOPEN_S`. The binding (19 MiB of memory, 65 ms to import) is loaded only where the
  library is.
- A card that has fallen off its bus answers `GpuIsLost` to every call while its neighbours go on. It comes
  back, if ever, only for a client that opens NVML anew, which is done every `REOPEN_LOST_S`. Indices may
  shift then: identity is the UUID.
- XID errors come once, through an event set; waiting for zero milliseconds does not block.
- `GetPcieThroughput` blocks 20 ms a direction, so it is nowhere here.
"""

import ctypes
from contextlib import suppress
from typing import Any, Literal

from services.gpu_agent.fields import GpuLost, ask, facts, read, text
from services.gpu_agent.reading import Facts, GpuSample, HostSample, Reading

REOPEN_S = 5.0
REOPEN_LOST_S = 300.0
FACTS_EVERY_S = 5.0

XIDS_A_TICK = 64
"""Bounds one tick when a dying card floods the event set."""


class _Device:
    """A GPU as it was opened; `handle` is None when even that was refused."""

    def __init__(self, index: int, handle: Any, uuid: str, name: str | None, pci_bus_id: str | None) -> None:
        self.index = index
        self.handle = handle
        self.uuid = uuid
        self.name = name
        self.pci_bus_id = pci_bus_id
        self.xids_supported = False
        self.xids: list[int] = []


class Nvml:
    """Every GPU of this host; used by one thread only."""

    def __init__(self, *, facts_every_s: float = FACTS_EVERY_S) -> None:
        self._facts_every_s = facts_every_s
        self._n: Any = None  # the binding, once the library is there
        self._open = False
        self._tried_at_s: float | None = None
        self._opened_at_s = 0.0
        self._facts_at_s: float | None = None
        self._state: Literal["ok", "absent", "failing"] = "absent"
        self._reason = "not looked yet"
        self._versions: tuple[str | None, str | None] = (None, None)
        self._devices: list[_Device] = []
        self._known: dict[int, _Device] = {}
        self._events: Any = None

    def sample(self, t_s: float) -> HostSample:
        """Look at every GPU once; never raises for what NVML says."""
        if not self._open and (self._tried_at_s is None or t_s - self._tried_at_s >= REOPEN_S):
            self._tried_at_s = t_s
            self._try_open(t_s)
        gpus: list[GpuSample] = []
        if self._open and self._answers(t_s):
            self._collect_xids()
            facts_due = self._facts_at_s is None or t_s - self._facts_at_s >= self._facts_every_s
            gpus = [self._look(device, t_s, facts_due) for device in self._devices]
            if facts_due:
                self._facts_at_s = t_s
            if any(gpu.lost for gpu in gpus) and t_s - self._opened_at_s >= REOPEN_LOST_S:
                self.close()
        return HostSample(t_s, self._state, self._reason, *self._versions, gpus)

    def close(self) -> None:
        """Give the library back; the next sample opens it anew."""
        if not self._open:
            return
        with suppress(self._n.NVMLError):
            if self._events is not None:
                self._n.nvmlEventSetFree(self._events)
        with suppress(self._n.NVMLError):
            self._n.nvmlShutdown()
        self._open, self._events, self._devices = False, None, []
        self._facts_at_s = self._tried_at_s = None

    def _try_open(self, t_s: float) -> None:
        if self._n is None:
            try:
                ctypes.CDLL("libnvidia-ml.so.1")
            except OSError:
                self._state, self._reason = "absent", "no NVIDIA driver (libnvidia-ml.so.1 not found)"
                return
            import pynvml  # late: a host without a driver never pays for it

            self._n = pynvml
        n = self._n
        try:
            n.nvmlInit()
            self._open = True
            count = n.nvmlDeviceGetCount()
        except n.NVMLError as error:
            self.close()
            self._tried_at_s = t_s
            absent = isinstance(error, n.NVMLError_LibraryNotFound | n.NVMLError_DriverNotLoaded)
            self._state = "absent" if absent else "failing"
            self._reason = f"NVML does not start: {error}"
            self._versions = (None, None)
            return
        self._opened_at_s = t_s
        self._state = self._reason = "ok"
        with suppress(GpuLost):  # these ask no card, so they have no right to say so
            cuda = ask(n, n.nvmlSystemGetCudaDriverVersion_v2, n.nvmlSystemGetCudaDriverVersion)
            told = None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}"
            self._versions = (text(ask(n, n.nvmlSystemGetDriverVersion)), told)
        self._devices = [self._open_device(index) for index in range(count)]
        self._known |= {device.index: device for device in self._devices}
        self._listen()

    def _open_device(self, index: int) -> _Device:
        n = self._n
        with suppress(GpuLost):
            handle = ask(n, lambda: n.nvmlDeviceGetHandleByIndex(index))
            if handle is not None:
                uuid = text(ask(n, lambda: n.nvmlDeviceGetUUID(handle))) or f"unknown-{index}"
                name = text(ask(n, lambda: n.nvmlDeviceGetName(handle)))
                pci = ask(n, lambda: n.nvmlDeviceGetPciInfo(handle))
                return _Device(index, handle, uuid, name, None if pci is None else text(pci.busId))
        was = self._known.get(index)
        if was is None:
            return _Device(index, None, f"unknown-{index}", None, None)
        return _Device(index, None, was.uuid, was.name, was.pci_bus_id)

    def _answers(self, t_s: float) -> bool:
        """See that NVML itself still answers: under an unloaded or updated driver every call fails."""
        n = self._n
        try:
            n.nvmlDeviceGetCount()
        except n.NVMLError as error:
            self.close()
            self._tried_at_s = t_s
            self._state, self._reason = "failing", f"NVML does not answer: {error}"
            return False
        return True

    def _listen(self) -> None:
        n = self._n
        try:
            self._events = n.nvmlEventSetCreate()
        except n.NVMLError:
            return
        for device in self._devices:
            device.xids_supported = device.handle is not None and self._registered(device.handle)

    def _registered(self, handle: Any) -> bool:
        n = self._n
        xid = n.nvmlEventTypeXidCriticalError
        try:
            if not n.nvmlDeviceGetSupportedEventTypes(handle) & xid:
                return False
            n.nvmlDeviceRegisterEvents(handle, xid, self._events)
        except n.NVMLError:
            return False
        return True

    def _collect_xids(self) -> None:
        if not any(device.xids_supported for device in self._devices):
            return
        n = self._n
        by_address = {_address(device.handle): device for device in self._devices if device.handle}
        for _ in range(XIDS_A_TICK):
            try:
                event = n.nvmlEventSetWait(self._events, 0)
            except n.NVMLError:  # a timeout: there is nothing more
                return
            device = by_address.get(_address(event.device))
            if device is not None and event.eventType == n.nvmlEventTypeXidCriticalError:
                device.xids.append(int(event.eventData))

    def _look(self, device: _Device, t_s: float, facts_due: bool) -> GpuSample:
        reading: Reading | None = None
        slow: Facts | None = None
        if device.handle is not None:
            with suppress(GpuLost):
                reading = read(self._n, device.handle, t_s)
            with suppress(GpuLost):
                slow = facts(self._n, device.handle) if facts_due and reading is not None else None
        xids, device.xids = device.xids, []
        return GpuSample(
            uuid=device.uuid,
            index=device.index,
            name=device.name,
            pci_bus_id=device.pci_bus_id,
            reading=reading,
            facts=slow,
            xids=xids,
            xids_supported=device.xids_supported,
        )


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
