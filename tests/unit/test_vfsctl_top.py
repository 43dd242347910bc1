"""vfsctl top: what is read of a control group and of /proc, and what is made of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from vfsd.cli import usage
from vfsd.cli.top import Row
from vfsd.cli.usage import Rates, Sample, rates, sample


@pytest.fixture
def host(tmp_path: Path) -> tuple[Path, Path]:
    """/proc and the control groups of a machine with a virtiofsd, in a kernel that counts processor time alone."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    machine = groups / "vfsd.slice/vfsd-dev.slice"
    for pid, service, memory, io in ((7, "vfsd-machine-dev.service", (100, 20, 5000), None),
                                     (8, "vfsd-share-dev.src.service", (4, 2, 5000), (1000, 200))):  # fmt: skip
        (machine / service).mkdir(parents=True)
        (machine / service / "cgroup.procs").write_text(f"{pid}\n")
        (machine / service / "cpu.stat").write_text("usage_usec 5\n")
        (proc / str(pid)).mkdir(parents=True)
        (proc / str(pid) / "cgroup").write_text(f"0::/vfsd.slice/vfsd-dev.slice/{service}\n")
        anon, file, shmem = memory
        status = f"Name:\tx\nRssAnon:\t{anon} kB\nRssFile:\t{file} kB\nRssShmem:\t{shmem} kB\n"
        (proc / str(pid) / "status").write_text(status)
        if io:
            (proc / str(pid) / "io").write_text(f"rchar: {io[0]}\nwchar: {io[1]}\nsyscr: 1\n")
    (machine / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    (machine / "cgroup.procs").write_text("")
    return proc, groups


def test_a_machine_is_its_slice(host: tuple[Path, Path]) -> None:
    proc, groups = host
    found = sample(7, "vfsd-dev.slice", 1.0, proc=proc, cgroups=groups)
    assert found == Sample(1.0, 1_500_000, (100 + 20 + 4 + 2 + 5000) * 1024), "the guest's memory counts once"
    (groups / "vfsd.slice/vfsd-dev.slice/memory.current").write_text("4096\n")
    assert sample(7, "vfsd-dev.slice", 1.0, proc=proc, cgroups=groups).memory == 4096


def test_a_share_has_its_throughput_if_it_may_be_seen(host: tuple[Path, Path]) -> None:
    proc, groups = host
    unit = "vfsd-share-dev.src.service"
    assert sample(8, unit, 1.0, io=True, proc=proc, cgroups=groups)[3:] == (1000, 200)
    (proc / "8/io").unlink()
    assert sample(8, unit, 1.0, io=True, proc=proc, cgroups=groups)[3:] == (None, None)
    assert sample(9, unit, 1.0, proc=proc, cgroups=groups) == Sample(1.0), "it has ended"
    assert sample(7, unit, 1.0, proc=proc, cgroups=groups) == Sample(1.0), "it is another unit's"


def test_processor_time_without_control_groups_count(host: tuple[Path, Path]) -> None:
    proc, groups = host
    unit = "vfsd-share-dev.src.service"
    (groups / "vfsd.slice/vfsd-dev.slice" / unit / "cpu.stat").unlink()
    ticks = os.sysconf("SC_CLK_TCK")
    (proc / "8/stat").write_text(f"8 (virtio) fs d) S 1 1 1 0 -1 0 0 0 0 0 {ticks} {2 * ticks} 0 0\n")
    assert sample(8, unit, 1.0, proc=proc, cgroups=groups).cpu_usec == 3_000_000


def test_this_very_process() -> None:
    """The real /proc has the fields."""
    pids = [os.getpid()]
    before = usage._cpu(Path("/does/not/exist"), pids, usage.PROC)
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    after = usage._cpu(Path("/does/not/exist"), pids, usage.PROC)
    assert before is not None
    assert after is not None
    assert after - before >= 50_000
    assert (usage._resident(pids, usage.PROC) or 0) > 1 << 20
    assert usage._io(pids, usage.PROC)[0]


def test_rates() -> None:
    first, second = Sample(1.0, 1_000_000, 10, 100, None), Sample(3.0, 4_000_000, 20, 300, 5)
    assert rates(first, second) == Rates(150.0, 20, 100.0, None)
    assert rates(None, second) == Rates(None, 20, None, None)
    assert rates(first, None) == Rates()
    assert rates(second, first._replace(at=5.0)) == Rates(None, 10, None, None), "counters that fell"


def test_a_line_says_what_is_not_known() -> None:
    assert Row("dev", "stopped").cells() == ["dev", "stopped", "-", "-", "-", "-"]
    row = Row("src", "active", Rates(12.34, 3 << 29, 0.2, 2048.0))
    assert row.cells("  ") == ["  src", "active", "12.3%", "1.5G", "0", "2K"]
    assert row.as_json()["ReadPerSec"] == 0
