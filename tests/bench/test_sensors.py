"""Sensors and machine description, read from trees as a Jetson, a server and a laptop have them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cir_bench.machine import peak_host_bytes, stamp
from cir_bench.sensors import Reading, Sensors, read_sensors, summarise_readings
from cir_bench.trust import doubts_about_machine, doubts_about_roofline, doubts_about_samples
from cir_infer.machine.description import describe_machine
from cir_infer.machine.nvml import Nvml


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_jetson_tells_its_model_release_power_mode_rails_and_temperatures(tmp_path: Path):
    root = write(
        tmp_path,
        {
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
            "var/lib/nvpmodel/status": "pmode:0002",
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "sys/class/hwmon/hwmon1/name": "ina3221\n",
            "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
            "sys/class/hwmon/hwmon1/in1_input": "5000\n",
            "sys/class/hwmon/hwmon1/curr1_input": "1500\n",
            "sys/class/thermal/thermal_zone0/type": "gpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "48500\n",
            "sys/class/devfreq/17000000.gpu/cur_freq": "918000000\n",
        },
    )
    machine = describe_machine(root)
    assert machine["name"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert machine["jetson"]["l4t"] == "36.4.3"
    assert machine["jetson"]["power_mode"] == "MAXN_SUPER"
    reading = read_sensors(root)
    assert reading.watts == {"VDD_IN": 7.5}
    assert reading.celsius == {"gpu-thermal": 48.5}
    assert reading.mhz["gpu"] == 918


def test_a_server_tells_its_clocks_energy_and_stolen_time(tmp_path: Path):
    root = write(
        tmp_path,
        {
            "proc/cpuinfo": "model name\t: A CPU\ncpu MHz\t\t: 2500.0\nflags\t\t: avx2 avx512f hypervisor\n",
            "proc/stat": "cpu  100 0 50 900 10 0 0 25 0 0\n",
            "sys/class/powercap/intel-rapl:0/name": "package-0\n",
            "sys/class/powercap/intel-rapl:0/energy_uj": "2500000\n",
        },
    )
    reading = read_sensors(root)
    assert reading.joules == {"package-0": 2.5}
    assert reading.mhz == {"cpu": 2500}
    assert (reading.busy_seconds, reading.stolen_seconds) == (1.5, 0.25)
    cpu = describe_machine(root)["cpu"]
    assert (cpu["model"], cpu["instruction_sets"], cpu["virtual"]) == ("A CPU", ["avx2", "avx512f"], True)


def test_a_machine_without_any_of_it_still_answers(tmp_path: Path):
    assert describe_machine(tmp_path)["memory_bytes"] is None
    summary = summarise_readings([read_sensors(tmp_path), read_sensors(tmp_path)])
    assert summary["joules"] == {}
    assert doubts_about_machine(summary) == []


def test_energy_is_a_counter_s_difference_or_power_over_time():
    readings = [
        Reading(0.0, watts={"rail": 10.0}, joules={"package": 5.0, "wrapped": 9.0}),
        Reading(1.0, watts={"rail": 20.0}, joules={"package": 8.0, "wrapped": 9.5}),
        Reading(3.0, watts={"rail": 10.0}, joules={"package": 25.0, "wrapped": 1.0}),
    ]
    summary = summarise_readings(readings)
    assert summary["joules"] == {"package": 20.0, "rail": 15.0 + 30.0}
    assert summary["watts"]["rail"] == pytest.approx(15.0)


def test_neighbours_theft_throttling_and_moving_clocks_are_named():
    quiet = Reading(0.0, mhz={"gpu": 1000})
    loud = Reading(
        10.0, mhz={"gpu": 1980}, throttling=("power cap",), busy_seconds=15, own_seconds=8, stolen_seconds=1
    )
    doubts = doubts_about_machine(summarise_readings([quiet, loud]))
    assert [
        word
        for word in ("clock moved", "power cap", "0.70 cores", "0.10 cores")
        if any(word in d for d in doubts)
    ] == [
        "clock moved",
        "power cap",
        "0.70 cores",
        "0.10 cores",
    ]
    assert doubts_about_machine(summarise_readings([quiet, Reading(10.0, mhz={"gpu": 1000})])) == []


def test_few_samples_drift_and_interruptions_are_named():
    assert doubts_about_samples("x", [1.0] * 600) == []
    assert "p99 needs 500" in doubts_about_samples("x", [1.0] * 100)[0]
    assert "not steady" in " ".join(doubts_about_samples("x", [1.0] * 300 + [1.5] * 300))
    assert "something interrupts" in " ".join(doubts_about_samples("x", [1.0] * 590 + [9.0] * 10))


def test_the_watcher_reads_at_both_ends_and_between():
    with Sensors(period=0.01) as sensors:
        sum(range(2_000_000))
    assert len(sensors.readings) >= 2
    assert summarise_readings(sensors.readings)["own_cores"] > 0


def test_a_result_is_stamped_with_machine_commit_and_moment():
    head = stamp()
    assert head["machine"]["cpu"]["cores"] >= 1
    assert head["commit"]
    assert head["created"].endswith("+00:00")
    peak = peak_host_bytes()
    assert peak is None or peak > 1_000_000


def test_without_a_driver_there_are_no_gpus():
    assert Nvml.devices("libno-such-library.so.1") == []


_DRIVER = r"""
#include <string.h>
typedef void *dev;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, dev *d) { *d = (dev)0x1234567890; return i == 0 ? 0 : 2; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, "580.0", n); return 0; }
int nvmlDeviceGetName(dev d, char *s, unsigned n) { strncpy(s, "Test GPU", n);
  return d != (dev)0x1234567890; }
int nvmlDeviceGetMemoryInfo(dev d, unsigned long long *m) {
  m[0] = 16ull << 30; m[1] = 0; m[2] = 3ull << 30; return 0;
}
int nvmlDeviceGetMaxClockInfo(dev d, int type, unsigned *mhz) { *mhz = type == 0 ? 1590 : 5001; return 0; }
int nvmlDeviceGetClockInfo(dev d, int type, unsigned *mhz) { *mhz = 1500; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(dev d, unsigned *mw) { *mw = 70000; return 0; }
int nvmlDeviceGetPowerUsage(dev d, unsigned *mw) { *mw = 65500; return 0; }
int nvmlDeviceGetTemperature(dev d, int which, unsigned *c) { *c = 61; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(dev d, unsigned long long *mj) { return 3; }
int nvmlDeviceGetCurrentClocksThrottleReasons(dev d, unsigned long long *r) {
  *r = 0x04 | 0x01 | 0x20; return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build the stand-in driver library")
def test_the_management_library_is_called_as_its_header_says(tmp_path: Path):
    source, library = tmp_path / "nvml.c", tmp_path / "libnvml.so"
    source.write_text(_DRIVER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    assert Nvml.devices(str(library)) == [
        {
            "name": "Test GPU",
            "driver": "580.0",
            "memory_bytes": 16 << 30,
            "max_sm_mhz": 1590,
            "max_memory_mhz": 5001,
            "power_limit_watt": 70.0,
        }
    ]
    gpu = Nvml.open(0, str(library))
    assert gpu is not None
    assert (gpu.sm_mhz(), gpu.celsius(), gpu.watts(), gpu.used_bytes()) == (1500, 61, 65.5, 3 << 30)
    assert gpu.joules() is None, "a chip without the counter answers 'not supported'"
    assert gpu.throttling() == ["power cap", "software thermal slowdown"]
    assert "gpu" in read_sensors(tmp_path, gpu).watts


def test_a_roof_that_is_exceeded_is_doubted():
    assert doubts_about_roofline({}) == []
    assert doubts_about_roofline({"encoder_fraction": 1.05, "score_fraction": 0.9}) == []
    (doubt,) = doubts_about_roofline({"encoder_fraction": 2.07, "score_fraction": 0.9})
    assert "the image encoder" in doubt and "2.07" in doubt
    assert "scoring" in doubts_about_roofline({"score_fraction": 1.3, "rows_fit_in_cache": False})[0]
    assert (
        doubts_about_roofline({"score_fraction": 5.0, "rows_fit_in_cache": True}) == []
    )  # faster than memory
