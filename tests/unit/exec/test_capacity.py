"""What a container may use, as the kernel shows it."""

import os

import pytest

from tiflow.exec import capacity

MIB = 1 << 20
CORES = 1_000 * len(os.sched_getaffinity(0))
V2 = "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
V1 = """32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory"""


def machine(tmp_path, mounts, cgroups, files):
    files = {
        "proc/meminfo": f"MemTotal:       {8_000 * 1_024} kB\nMemFree: 1 kB\n",
        "proc/self/mountinfo": f"22 1 8:1 / / rw - ext4 /dev/sda rw\n{mounts}\n",
        "proc/self/cgroup": f"{cgroups}\n",
    } | files
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("mounts", "cgroups", "files", "expected"),
    [
        (V2, "0::/", {}, (CORES, 8_000 * MIB)),
        (V2, "0::/a/b", {"sys/fs/cgroup/a/b/cpu.max": "50000 100000", "sys/fs/cgroup/a/b/memory.max": "max"},
         (500, 8_000 * MIB)),
        (V2, "0::/a/b", {"sys/fs/cgroup/a/cpu.max": "max 100000", "sys/fs/cgroup/a/memory.max": str(300 * MIB),
                         "sys/fs/cgroup/a/b/memory.max": str(400 * MIB)}, (CORES, 300 * MIB)),
        (V1, "4:memory:/docker/x\n2:cpu,cpuacct:/docker/x",
         {"sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "75000",
          "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000",
          "sys/fs/cgroup/memory/docker/memory.limit_in_bytes": str(512 * MIB),
          "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "9223372036854771712"}, (750, 512 * MIB)),
        (V1.replace(" / /sys", " /docker/x /sys"), "4:memory:/docker/x\n2:cpu,cpuacct:/docker/x",
         {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
          "sys/fs/cgroup/memory/memory.limit_in_bytes": str(512 * MIB)}, (CORES, 512 * MIB)),
        ("", "", {}, (CORES, 8_000 * MIB)),
    ],
)  # fmt: skip
def test_the_least_limit_on_the_way_up_counts(tmp_path, mounts, cgroups, files, expected):
    assert capacity.detect(machine(tmp_path, mounts, cgroups, files)) == expected


def test_a_part_of_a_processor_is_a_slot_and_a_part_more_is_none():
    assert [capacity.Capacity(milli, 1).slots for milli in (1, 500, 1_000, 1_900, 4_000)] == [1, 1, 1, 1, 4]


def test_processes_that_the_kernel_killed_are_counted(tmp_path):
    files = {"sys/fs/cgroup/a/memory.events": "low 0\noom 3\noom_kill 2\n"}
    root = machine(tmp_path, V2, "0::/a", files)

    assert capacity.oom_kills(root) == 2
    assert capacity.oom_kills(tmp_path / "none") == 0


def test_this_machine_has_something():
    found = capacity.detect()

    assert 0 < found.cpu_milli <= CORES
    assert found.memory_bytes > 16 * MIB
