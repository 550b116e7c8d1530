#!/usr/bin/env python3
"""Runs a static x86-64 program on an emulated processor with AMX, with this process's input and output.

    python3 tools/emulator/bochs.py build/amx/cir_score_cases avx512amx <cases >answers

`make amx-check` gives this command to the tests. Bochs is the emulator that knows AVX-512 and AMX. It is a
whole machine, so a Linux kernel is started in it, and guest.c as its first program, which runs ours. Needs

    Bochs                as build_bochs.py makes it: $BOCHS, or build/bochs/bochs
    a Linux kernel       5.16 or later with its modules: $LINUX_ROOT, where a package was unpacked, or the
                         newest in /boot
    Debian's packages    bochsbios, vgabios, isolinux, syslinux-common, xorriso; and a C compiler
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

HERE = Path(__file__).resolve().parent
BUILT = HERE.parents[1] / "build" / "bochs" / "bochs"

DRIVERS = ("ata_piix", "sd_mod")
MODEL = "sapphire_rapids"
MEMORY_MB = 512
PACKAGES = "bochsbios, vgabios, isolinux, syslinux-common, xorriso (Debian's names) and a C compiler"
BIOS = Path("/usr/share/bochs/BIOS-bochs-latest")
VGA = Path("/usr/share/vgabios/vgabios.bin")
ISOLINUX = Path("/usr/lib/ISOLINUX/isolinux.bin")
LDLINUX = Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")

TOLD = (
    *("console=ttyS0", "quiet", "random.trust_cpu=on", "mitigations=off", "nokaslr", "rdinit=/init"),
    "no5lvl",  # Bochs 3.0 cannot leave an interrupt of its BIOS with page tables of five levels
    "tsc_early_khz=50000",  # as many instructions a second as configured below, whatever the processor claims
    "clearcpuid=580",  # fast short copies, which it claims without those that Linux takes to come with them
)
"""What the kernel is told."""

# As in guest.c.
SECTOR, PIECE, TO_GUEST, FROM_GUEST, DISK = 512, 8 << 20, 1 << 20, 16 << 20, 32 << 20
PAUSE = 0.002


def bochs() -> str:
    """The emulator."""
    found = shutil.which(os.environ.get("BOCHS", str(BUILT)))
    if found is None:
        sys.exit("there is no Bochs that knows AMX: tools/emulator/build_bochs.py makes one of its source")
    asked = subprocess.run([found, "--help", "cpu"], capture_output=True, text=True, check=False)
    lacking = [str(path) for path in (BIOS, VGA, ISOLINUX, LDLINUX) if not path.is_file()]
    lacking += [name for name in ("xorriso", "cc") if shutil.which(name) is None]
    if lacking:
        sys.exit(f"{', '.join(lacking)} are not here: install {PACKAGES}")
    if MODEL not in asked.stdout + asked.stderr:
        sys.exit(f"{found} does not emulate {MODEL}: tools/emulator/build_bochs.py makes a Bochs that does")
    return found


def linux() -> tuple[Path, Path]:
    """A kernel and the folder of its modules."""
    root = Path(os.environ.get("LINUX_ROOT", "/"))
    kernels = [(path, root / "lib/modules" / path.name[8:]) for path in root.glob("boot/vmlinuz-*")]
    found = [(kernel, modules) for kernel, modules in kernels if modules.is_dir()]
    if not found:
        sys.exit(
            f"no Linux kernel with its modules lies below {root}: set LINUX_ROOT to where a package of one, "
            "such as Debian's linux-image-*-cloud-amd64, was unpacked"
        )
    return max(found, key=lambda pair: [int(n) for n in re.findall(r"\d+", pair[0].name)])


def drivers(modules: Path) -> list[bytes]:
    """The modules that a disk needs, each behind those that it depends on."""
    files = {path.name.split(".ko")[0].replace("-", "_"): path for path in modules.rglob("*.ko*")}
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in found or name not in files:
            return  # what is no file is part of the kernel
        data = files[name].read_bytes()
        if files[name].suffix == ".xz":
            data = lzma.decompress(data)
        needs = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in (needs.group(1).decode() if needs else "").split(","):
            add(other.replace("-", "_"))
        found[name] = data

    for name in DRIVERS:
        add(name)
    return list(found.values())


def archive(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An initramfs: (mode, bytes) by path."""
    out = bytearray()
    for number, (name, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))]):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        out += b"\0" * (-len(out) % 4)
        out += data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def image(folder: Path, program: Path, arguments: list[str]) -> Path:
    """A disc that starts Linux with the program."""
    kernel, modules = linux()
    subprocess.run(["cc", "-O2", "-static", "-o", str(folder / "guest"), str(HERE / "guest.c")], check=True)
    files = {
        "init": (0o100755, (folder / "guest").read_bytes()),
        "cases": (0o100755, program.read_bytes()),
        "arguments": (0o100644, b"".join(argument.encode() + b"\0" for argument in arguments)),
        "drivers": (0o040755, b""),
    }
    for number, data in enumerate(drivers(modules)):
        files[f"drivers/{number}.ko"] = (0o100644, data)
    disc = folder / "disc"
    disc.mkdir()
    (disc / "initrd").write_bytes(archive(files))
    shutil.copy(kernel, disc / "linux")
    shutil.copy(ISOLINUX, disc / "isolinux.bin")
    shutil.copy(LDLINUX, disc / "ldlinux.c32")
    (disc / "isolinux.cfg").write_text(
        f"DEFAULT x\nPROMPT 0\nLABEL x\nKERNEL /linux\nINITRD /initrd\nAPPEND {' '.join(TOLD)}\n"
    )
    made = folder / "disc.iso"
    boot = ("-no-emul-boot", "-boot-load-size", "4", "-boot-info-table")
    command = ("xorriso", "-as", "mkisofs", "-quiet", "-R", "-b", "isolinux.bin", "-c", "boot.cat", *boot)
    subprocess.run([*command, "-o", str(made), str(disc)], check=True, stderr=subprocess.DEVNULL)
    return made


def configure(folder: Path, disc: Path) -> Path:
    """What Bochs reads."""
    (folder / "disk").touch()
    os.truncate(folder / "disk", DISK)
    text = f"""
display_library: nogui
romimage: file={BIOS}
vgaromimage: file={VGA}
memory: guest={MEMORY_MB}, host={MEMORY_MB}
cpu: model={MODEL}, count=1, ips=50000000, reset_on_triple_fault=0
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
ata0-master: type=disk, path={folder / "disk"}, mode=flat
ata1-master: type=cdrom, path={disc}, status=inserted
boot: cdrom
clock: sync=none, time0=utc
com1: enabled=1, mode=file, dev={folder / "console"}
log: {folder / "log"}
panic: action=fatal
error: action=report
info: action=ignore
debug: action=ignore
"""
    (folder / "bochsrc").write_text(text)
    return folder / "bochsrc"


class Machine:
    """A started machine."""

    def __init__(self, folder: Path, program: Path, arguments: list[str]) -> None:
        self._folder = folder
        emulator = bochs()
        settings = configure(folder, image(folder, program, arguments))
        self._disk = os.open(folder / "disk", os.O_RDWR)
        self._process = subprocess.Popen(
            [emulator, "-q", "-f", str(settings)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip

    def end(self) -> None:
        """Switch it off."""
        self._process.kill()
        self._process.wait()
        os.close(self._disk)

    def said(self) -> str:
        """The end of what was written to the console."""
        console = self._folder / "console"
        return console.read_text(errors="replace")[-4000:] if console.exists() else ""

    def _get(self, sector: int) -> tuple[int, int]:
        number, size = struct.unpack("<QQ", os.pread(self._disk, 16, sector * SECTOR))
        return number, size

    def _put(self, sector: int, number: int, size: int) -> None:
        os.pwrite(self._disk, struct.pack("<QQ", number, size), sector * SECTOR)

    def carry(self, given: int, taken: BinaryIO) -> int:
        """Input and output until the program ends: what it leaves with."""
        sent = received = 0
        os.set_blocking(given, False)
        ended = False
        while True:
            idle = True
            if not ended and self._get(1)[0] == sent:
                data = _read(given)
                if data is not None:
                    os.pwrite(self._disk, data, TO_GUEST)
                    sent += 1
                    self._put(0, sent, len(data))
                    ended, idle = not data, False
            number, size = self._get(2)
            if number > received:
                taken.write(os.pread(self._disk, size, FROM_GUEST))
                taken.flush()
                received, idle = number, False
                self._put(3, received, 0)
                if size == 0:
                    return int.from_bytes(os.pread(self._disk, 8, 2 * SECTOR + 16), "little")
            if self._process.poll() is not None:
                sys.exit(f"the machine ended by itself\n{self.said()}")
            if idle:
                time.sleep(PAUSE)


def _read(given: int) -> bytes | None:
    """All that is there, up to a piece: nothing at the end, None if there is none yet."""
    data = b""
    while len(data) < PIECE:
        try:
            more = os.read(given, PIECE - len(data))
        except BlockingIOError:
            return data or None
        if not more:
            return data
        data += more
    return data


def main(arguments: list[str]) -> int:
    """The command: what the program leaves with."""
    if not arguments:
        sys.exit(__doc__)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="cir-bochs-") as name:
        machine = Machine(Path(name), Path(arguments[0]), arguments[1:])
        try:
            left_with = machine.carry(sys.stdin.fileno(), sys.stdout.buffer)
            if left_with != 0:
                sys.stderr.write(machine.said())
            return left_with
        finally:
            machine.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
