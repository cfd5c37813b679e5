"""What a Jetson says about itself, in the formats of the real files: its release, board, drive, and the EFI variables in its QSPI flash.

Formats: NVIDIA L4T R36 (/etc/nv_tegra_release, /etc/nv_boot_control.conf), the kernel's device tree and NVMe attributes in sysfs, UEFI 2.10
section 3.1.3 (EFI_LOAD_OPTION) and chapter 10 (device paths). Pure: paths and bytes; whoever makes a root writes them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

_RELEASE = "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64, DATE: Fri Sep 13 04:36:44 UTC 2024\n"
_BOOT_CONTROL = """\
TNSPEC 3701-500-0005-G.0-1-0-jetson-agx-orin-devkit-
COMPATIBLE_SPEC 3701--0005--1--jetson-agx-orin-devkit-
TEGRA_BOOT_STORAGE nvme0n1
TEGRA_CHIPID 0x23
TEGRA_OTA_BOOT_DEVICE /dev/mtdblock0
TEGRA_OTA_GPT_DEVICE /dev/mtdblock0
"""
_OS_RELEASE = """\
PRETTY_NAME="Ubuntu 22.04.4 LTS"
NAME="Ubuntu"
VERSION_ID="22.04"
VERSION="22.04.4 LTS (Jammy Jellyfish)"
VERSION_CODENAME=jammy
ID=ubuntu
ID_LIKE=debian
"""

_EFI_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
_NON_VOLATILE_AND_AT_RUNTIME = 0x7
_LOAD_OPTION_ACTIVE = 0x1

_END = bytes.fromhex("7fff0400")
_PCI_ROOT = struct.pack("<BBHII", 2, 1, 12, 0x0A0341D0, 0)  # ACPI device path, PNP0A03
_PCI_BRIDGE = struct.pack("<BBHBB", 1, 1, 6, 0, 0)
_NVME_NAMESPACE = struct.pack("<BBHIQ", 3, 0x17, 16, 1, 0)
_FIRMWARE_SHELL = struct.pack("<BBH", 4, 6, 20) + bytes.fromhex("83a5047c3e9e1c4fad65e05268d0b4d1")  # file in a firmware volume


def release_files() -> Mapping[str, bytes]:
    """Files of the root file system that say which release it is, by path below the root."""
    return {
        "etc/nv_tegra_release": _RELEASE.encode(),
        "etc/nv_boot_control.conf": _BOOT_CONTROL.encode(),
        "etc/os-release": _OS_RELEASE.encode(),
    }


def board_facts(*, drive_model: str, drive_serial: str, board_serial: str) -> Mapping[str, bytes]:
    """Everything a capture asks a Jetson, by path below its facts root."""
    device, variables = "sys/class/block/nvme0n1/device", "sys/firmware/efi/efivars"
    drive = f"UEFI {drive_model} {drive_serial} 1"
    options = {
        0: load_option(drive, _PCI_ROOT + _PCI_BRIDGE + _NVME_NAMESPACE + _END),
        1: load_option("UEFI Shell", _FIRMWARE_SHELL + _END),
    }
    return {
        **release_files(),
        "proc/device-tree/model": b"NVIDIA Jetson AGX Orin Developer Kit\0",
        "proc/device-tree/serial-number": board_serial.encode() + b"\0",
        # NVMe's Identify Controller has fixed fields, filled up with spaces; sysfs shows them so.
        f"{device}/model": f"{drive_model:<40.40}\n".encode(),
        f"{device}/serial": f"{drive_serial:<20.20}\n".encode(),
        f"{variables}/BootOrder-{_EFI_GLOBAL}": _variable(struct.pack(f"<{len(options)}H", *options)),
        **{f"{variables}/Boot{number:04X}-{_EFI_GLOBAL}": _variable(option) for number, option in options.items()},
    }


def load_option(description: str, device_path: bytes) -> bytes:
    """An EFI_LOAD_OPTION without optional data: attributes, length of the path, description, path."""
    return struct.pack("<IH", _LOAD_OPTION_ACTIVE, len(device_path)) + f"{description}\0".encode("utf-16-le") + device_path


def _variable(value: bytes) -> bytes:
    """As efivarfs shows it: attributes first."""
    return struct.pack("<I", _NON_VOLATILE_AND_AT_RUNTIME) + value
