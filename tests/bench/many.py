"""Many shares at once: made and listening, by vfsd and by raw calls."""

from __future__ import annotations

import time
from typing import Any

from tests.bench.bus import BUS, MANAGER, ROOT, SYSTEMD, VFSD, Header, RawBus
from tests.bench.modes import share_service, share_socket, variants
from tests.bench.results import Results, Row
from tests.bench.rounds import Turn, paired
from tests.bench.setting import NAME, PREFIX, SOURCES, bench_paths, vfsd_halted
from tests.bench.stats import Goal, median, ratios, spread
from vfsd import hardening
from vfsd.commands import virtiofsd_arguments
from vfsd.discovery import find_virtiofsd
from vfsd.model import ShareSpec
from vfsd.names import Scope

GOAL = 1.3
FLAT = Goal(1.3, "flat (≤ x1.30)")
IN_FLIGHT = 100
"""dbus-daemon allows 128 pending replies for each connection on the system bus."""
TIMEOUT = 90.0
COUNTS = (10, 100, 1000)


def share_names(count: int) -> list[str]:
    return [f"{NAME}-{number}" for number in range(count)]


class VfsdShares:
    """CreateShare and RemoveShare, pipelined."""

    def __init__(self) -> None:
        self.bus = RawBus()

    def create(self, count: int) -> float:
        SOURCES.mkdir(exist_ok=True)
        source = str(SOURCES)
        calls = [
            self.bus.message(VFSD, ROOT, MANAGER, "CreateShare", "ssa{sv}", name, source, {})
            for name in share_names(count)
        ]
        begin = time.perf_counter()
        self.bus.pipelined(calls, IN_FLIGHT, _ignore, TIMEOUT)
        return time.perf_counter() - begin

    def remove(self, count: int) -> float:
        calls = [
            self.bus.message(VFSD, ROOT, MANAGER, "RemoveShare", "s", name) for name in share_names(count)
        ]
        begin = time.perf_counter()
        self.bus.pipelined(calls, IN_FLIGHT, _ignore, TIMEOUT)
        return time.perf_counter() - begin


class RawShares:
    """StartTransientUnit for each socket and its service, pipelined; listening once its job is done."""

    def __init__(self) -> None:
        self.bus = RawBus()
        for rule in ("member='JobRemoved'", "member='UnitRemoved'"):
            self.bus.call(*BUS, "AddMatch", "s", f"type='signal',sender='{SYSTEMD[0]}',{rule}")
        self.bus.call(*SYSTEMD, "Subscribe")
        self._virtiofsd = str(find_virtiofsd().path)

    def create(self, count: int) -> float:
        calls = [self.bus.message(*SYSTEMD, "StartTransientUnit", "ssa(sv)a(sa(sv))", *body)
                 for body in map(self._body, range(count))]  # fmt: skip
        return self._jobs(calls, count)

    def remove(self, count: int) -> float:
        stop = [
            self.bus.message(*SYSTEMD, "StopUnit", "ss", f"{PREFIX}{number}.socket", "replace")
            for number in range(count)
        ]
        return self._jobs(stop, count)

    def _jobs(self, calls: list[tuple[int, bytes]], count: int) -> float:
        ended = 0

        def on_signal(message: Header) -> None:
            nonlocal ended
            ended += message.member == "JobRemoved"

        begin = time.perf_counter()
        self.bus.pipelined(calls, IN_FLIGHT, on_signal, TIMEOUT)
        end = begin + TIMEOUT
        while ended < count and time.perf_counter() < end:
            on_signal(self.bus.receive())
        return time.perf_counter() - begin

    def _body(self, number: int) -> list[Any]:
        paths = bench_paths()
        spec = ShareSpec.from_options(f"{NAME}-{number}", str(SOURCES), Scope.SYSTEM, {})
        arguments = virtiofsd_arguments(self._virtiofsd, spec, paths.mount)
        arguments = [f"--fd={3}" if word.startswith("--fd=") else word for word in arguments]
        socket = share_socket(str(paths.share_socket(spec.name)))
        service = [*share_service(arguments), *hardening.virtiofsd(spec, Scope.SYSTEM, paths, arguments[0])]
        return [
            f"{PREFIX}{number}.socket",
            "fail",
            variants(socket),
            [[f"{PREFIX}{number}.service", variants(service)]],
        ]


def _ignore(_message: Header) -> None:
    pass


async def measure(results: Results, rounds: int) -> None:
    """Section 5 of the goals."""
    vfsd, raw = VfsdShares(), RawShares()
    each: dict[str, dict[int, list[float]]] = {"raw": {}, "vfsd": {}}
    try:
        for count in COUNTS:
            samples = await paired(
                results,
                f"{count} shares",
                {"raw": _raw_turn(raw, count), "vfsd": _vfsd_turn(vfsd, count)},
                max(2, rounds // 3) if count == COUNTS[-1] else rounds,
            )
            if not samples["vfsd"]:
                continue
            for mode, times in each.items():
                times[count] = [seconds / count for seconds in samples[mode]["create"]]
            for what, title, goal in (("create", "made and listening", GOAL), ("remove", "removed", None)):
                told = f"{count} {title}: vfsd / raw"
                results.compare("many shares", told, samples["vfsd"][what], samples["raw"][what], goal)
        for mode, times in reversed(each.items()):
            if COUNTS[0] in times and COUNTS[-1] in times:
                _tell_flatness(results, mode, times)
    finally:
        vfsd.bus.close()
        raw.bus.close()


def _tell_flatness(results: Results, mode: str, times: dict[int, list[float]]) -> None:
    few, many = times[COUNTS[0]], times[COUNTS[-1]]
    value = spread(ratios(many, [median(few)] * len(many)))
    note = f"{median(many) * 1000:.2f} / {median(few) * 1000:.2f} ms per share"
    what = f"{mode}: cost per share, {COUNTS[-1]} / {COUNTS[0]}"
    results.add(Row("many shares", what, value, "x", FLAT if mode == "vfsd" else None, note))


def _vfsd_turn(shares: VfsdShares, count: int) -> Turn:
    async def run(_number: int) -> dict[str, float]:
        shares.bus.call(VFSD, ROOT, "org.freedesktop.DBus.Peer", "Ping")
        return {"create": shares.create(count), "remove": shares.remove(count)}

    return run


def _raw_turn(shares: RawShares, count: int) -> Turn:
    async def run(_number: int) -> dict[str, float]:
        shares.bus.poll()
        with vfsd_halted():
            return {"create": shares.create(count), "remove": shares.remove(count)}

    return run
