"""Ansible inventories: the shipped ones load, precedence is Ansible's, and every mistake is named."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from akidb_pipelines.errors import InputError, OutsideError
from akidb_pipelines.machines.inventory import Host, load_inventory, open_inventory
from akidb_pipelines.machines.ssh import Connection, parse_source, renew_certificate
from akidb_pipelines.settings import Settings

SHIPPED = Path(__file__).parents[2] / "deploy" / "inventory"


def load(tmp_path, text: str, **environment: str):
    path = tmp_path / "inventory.yaml"
    path.write_text(text)
    return load_inventory(path, environment)


# --- the shipped ones


def test_the_lab_has_two_jetsons_and_a_bastion_below_the_home(tmp_path):
    inventory = open_inventory(Settings(home=tmp_path / "home"))

    assert list(inventory.devices) == ["jetson-a", "jetson-b"]
    assert set(inventory.hosts) == {"lab-bastion", "jetson-a", "jetson-b", "lab-runner"}
    a, b = inventory.devices.values()
    assert a.drive == str(tmp_path / "home/lab/jetson/jetson-a/nvme0n1")
    assert (a.serial, a.freeze_mounts, b.freeze_mounts, b.facts_root) == ("LAB-NVME-A", (), ("/",), "/facts")
    assert b.host.option("proxyjump") == "lab-bastion"
    assert b.host.certificate_command == f"'{tmp_path}/home/lab/jetson/sign-certificate'"
    assert inventory.variables["jetson-b"]["akidb_lab_mounted"] is True


def test_the_example_for_production_loads_as_it_is():
    inventory = load_inventory(SHIPPED / "example-production.yaml", {})

    device = inventory.device("jetson-1")
    assert (device.drive, device.freeze_mounts, device.readonly_mounts) == ("/dev/nvme0n1", ("/",), ("/boot/efi",))
    assert (device.host.address, device.host.user, device.host.become) == ("10.20.0.11", "akidb-imaging", True)
    assert (device.freeze_seconds, device.facts_root) == (120, "/")
    assert dict(device.host.options) == {"ProxyJump": "bastion", "CertificateFile": "/etc/akidb/ssh/imaging-cert.pub"}


# --- precedence


def test_a_group_overrides_the_one_above_it_and_a_host_its_group(tmp_path):
    inventory = load(
        tmp_path,
        """
all:
  vars: {ansible_user: from-all, ansible_port: 1, akidb_drive: /dev/all}
  children:
    boards:
      vars: {ansible_port: 2}
      children:
        jetson:
          vars: {akidb_drive: /dev/jetson}
          hosts:
            one: {}
            two: {akidb_drive: /dev/two, ansible_port: 3}
""",
    )

    one, two = inventory.device("one"), inventory.device("two")
    assert (one.host.user, one.host.port, one.drive) == ("from-all", 2, "/dev/jetson")
    assert (two.host.port, two.drive) == (3, "/dev/two")


def test_a_host_that_is_named_in_two_groups_has_the_variables_of_both_and_its_own_before_them(tmp_path):
    inventory = load(
        tmp_path,
        """
all:
  vars: {ansible_user: from-all}
  hosts:
    one: {akidb_drive: /dev/own}
  children:
    arm: {vars: {ansible_user: from-arm, akidb_facts_root: /arm}, hosts: {one: {}}}
    jetson: {vars: {akidb_drive: /dev/jetson}, hosts: {one: {}}}
""",
    )

    device = inventory.device("one")
    assert (device.drive, device.host.user, device.facts_root) == ("/dev/own", "from-arm", "/arm")


def test_hosts_below_the_jetson_group_are_devices_and_others_are_not(tmp_path):
    inventory = load(
        tmp_path,
        """
jetson: {children: {inner: {hosts: {one: {akidb_drive: /dev/x}}}}}
other: {hosts: {two: {}}}
""",
    )

    assert list(inventory.devices) == ["one"]
    assert inventory.hosts["two"].address == "two"
    with pytest.raises(InputError, match="has no device 'two'; it has one") as caught:
        inventory.device("two")
    assert "AKIDB_INVENTORY" in caught.value.hint


def test_templates_look_into_the_environment_also_in_lists(tmp_path):
    text = """
jetson:
  hosts:
    one:
      akidb_drive: "{{ lookup('env', 'WHERE') }}/nvme0n1"
      akidb_freeze_mounts: ["{{lookup( 'env','WHERE' )}}"]
"""
    device = load(tmp_path, text, WHERE="/dev").device("one")

    assert (device.drive, device.freeze_mounts) == ("/dev/nvme0n1", ("/dev",))


# --- mistakes

ONE = "jetson: {hosts: {one: {akidb_drive: /dev/x, %s}}}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ONE % "akidb_fridge: /", "one: unknown variable akidb_fridge"),
        (ONE % "akidb_qspi: \"{{ qspi | default('x') }}\"", "one: akidb_qspi: template"),
        (ONE % "akidb_qspi: \"{{ lookup('env', 'NOWHERE') }}\"", "environment variable NOWHERE is not set"),
        ("jetson: {hosts: {one: {}}}", "one: akidb_drive: is ''"),
        ("jetson: {hosts: {one: {akidb_drive: nvme0n1}}}", "one: akidb_drive: is 'nvme0n1'"),
        (ONE % "akidb_freeze_mounts: /", "one: akidb_freeze_mounts: is '/'"),
        (ONE % "akidb_readonly_mounts: [boot]", "one: akidb_readonly_mounts: is ['boot']"),
        (ONE % "akidb_freeze_seconds: soon", "one: akidb_freeze_seconds: is 'soon'"),
        (ONE % "akidb_freeze_seconds: 0", "one: akidb_freeze_seconds: is 0"),
        (ONE % "ansible_port: -3", "one: ansible_port: is -3"),
        (ONE % "ansible_ssh_common_args: -J bastion", "one: ansible_ssh_common_args: '-J' is not understood"),
        (ONE % "ansible_ssh_common_args: -o", "one: ansible_ssh_common_args: '-o' is not understood"),
        (ONE % "ansible_ssh_common_args: '-o \"ProxyJump=x'", "one: ansible_ssh_common_args:"),
        ("jetson: {hosts: {One_Two: {akidb_drive: /dev/x}}}", "One_Two: is no name for a device"),
        ("jetson: {host: {one: {}}}", "group jetson: unknown key 'host'"),
        ("jetson: {hosts: [one]}", "hosts of jetson: is ['one'], which is no mapping"),
        ("jetson: {hosts: {one: /dev/x}}", "one: is '/dev/x', which is no mapping"),
        ("- jetson", "the file: is ['jetson'], which is no mapping"),
        ("jetson: {hosts: {one: ", "expected the node content"),
    ],
)
def test_a_mistake_is_named_with_its_file_host_and_what_to_write(tmp_path, text, told):
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)

    assert str(tmp_path / "inventory.yaml") in caught.value.message
    assert told in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("found", ["missing", "binary"])
def test_a_file_that_is_no_inventory_is_refused(tmp_path, found):
    path = tmp_path / "inventory.yaml"
    if found == "binary":
        path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(InputError, match=str(path)) as caught:
        load_inventory(path, {})

    assert "AKIDB_INVENTORY" in caught.value.hint


def test_an_empty_inventory_has_no_devices(tmp_path):
    with pytest.raises(InputError, match="it has none"):
        load(tmp_path, "").device("one")


# --- as ssh reads it


def ssh_reads(config: str, name: str, tmp_path) -> dict[str, list[str]]:
    """What OpenSSH itself makes of a configuration."""
    path = tmp_path / "config"
    path.write_text(config)
    told = subprocess.run(["ssh", "-G", "-F", path, name], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    for line in told.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


def test_ssh_reads_jump_host_certificate_and_pins_as_the_inventory_says(tmp_path):
    inventory = load_inventory(SHIPPED / "example-production.yaml", {})
    connection = Connection(inventory.hosts["jetson-1"], inventory.hosts)

    device, jump = (ssh_reads(connection.config(), name, tmp_path) for name in ("jetson-1", "bastion"))

    assert (device["hostname"], device["user"], device["proxyjump"]) == (["10.20.0.11"], ["akidb-imaging"], ["bastion"])
    assert device["certificatefile"] == ["/etc/akidb/ssh/imaging-cert.pub"]
    for told in (device, jump):
        assert told["stricthostkeychecking"] == ["true"]
        assert told["userknownhostsfile"] == ["/etc/akidb/ssh/known_hosts"]
        assert told["identityfile"] == ["/etc/akidb/ssh/imaging"]
        assert (told["batchmode"], told["updatehostkeys"]) == (["yes"], ["false"])
    assert (jump["hostname"], "proxyjump" in jump) == (["bastion.example.com"], False)


def test_paths_with_spaces_survive(tmp_path):
    host = Host("one", "192.0.2.1", key_file="/a b/key", known_hosts="/a b/pins", options=(("CertificateFile", "/a b/cert"),))

    told = ssh_reads(Connection(host).config(), "one", tmp_path)

    assert (told["identityfile"], told["userknownhostsfile"]) == (["/a b/key"], ["/a b/pins"])
    assert told["certificatefile"] == ["/a b/cert"]


def test_what_the_inventory_says_of_ssh_goes_before_our_own(tmp_path):
    host = Host("one", "192.0.2.1", options=(("ConnectTimeout", "77"), ("serveraliveinterval", "9")))

    told = ssh_reads(Connection(host).config(), "one", tmp_path)

    assert (told["connecttimeout"], told["serveraliveinterval"]) == (["77"], ["9"])


def test_no_option_of_the_inventory_undoes_the_pinning(tmp_path):
    options = (("StrictHostKeyChecking", "no"), ("UserKnownHostsFile", "/dev/null"), ("BatchMode", "no"))

    told = ssh_reads(Connection(Host("one", "192.0.2.1", known_hosts="/pins", options=options)).config(), "one", tmp_path)

    assert (told["stricthostkeychecking"], told["userknownhostsfile"], told["batchmode"]) == (["true"], ["/pins"], ["yes"])


def test_a_source_uses_the_users_own_keys_all_of_them_and_pins(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".ssh"
    folder.mkdir()
    for name in ("id_ed25519", "id_rsa", "known_hosts"):
        (folder / name).touch()

    connection, drive = parse_source("ssh://somebody@192.0.2.1:2222/dev/nvme0n1")
    told = ssh_reads(connection.config(), "192.0.2.1", tmp_path)

    assert drive == "/dev/nvme0n1"
    assert (told["user"], told["port"], told["hostname"]) == (["somebody"], ["2222"], ["192.0.2.1"])
    assert set(told["identityfile"]) == {str(folder / "id_ed25519"), str(folder / "id_rsa")}
    assert told["userknownhostsfile"] == [str(folder / "known_hosts")]
    assert connection.host.become
    assert not parse_source("ssh://root@192.0.2.1/dev/sda")[0].host.become


@pytest.mark.parametrize("url", ["ssh://host", "ssh://host:22", "ssh://host:x/dev/sda", "ssh:///dev/sda", "ssh://@host/dev/sda"])
def test_a_source_that_names_no_drive_is_refused(url):
    with pytest.raises(InputError, match="names no drive"):
        parse_source(url)


# --- certificates


@pytest.fixture
def signer(tmp_path):
    """A key, a CA, and a host of the inventory whose command signs the key for as long as it is told."""
    for name in ("key", "ca"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    certificate = tmp_path / "key-cert.pub"

    def host(validity: str) -> Host:
        command = f"ssh-keygen -q -s {tmp_path / 'ca'} -I test -n root -V {validity} {tmp_path / 'key.pub'}"
        return Host("one", "192.0.2.1", options=(("CertificateFile", str(certificate)),), certificate_command=command)

    return SimpleNamespace(host=host, certificate=certificate)


def test_a_certificate_is_made_when_it_is_missing_or_has_run_out_and_else_kept(signer):
    renew_certificate(signer.host("-1m:+10m"))
    first = signer.certificate.read_bytes()
    renew_certificate(signer.host("-1m:+20m"))
    assert signer.certificate.read_bytes() == first

    subprocess.run(signer.host("-2h:-1h").certificate_command.split(), check=True)
    expired = signer.certificate.read_bytes()
    renew_certificate(signer.host("-1m:+20m"))
    assert signer.certificate.read_bytes() not in {first, expired}

    subprocess.run(signer.host("-1m:+30s").certificate_command.split(), check=True)
    soon = signer.certificate.read_bytes()
    renew_certificate(signer.host("always:forever"))
    assert signer.certificate.read_bytes() != soon
    kept = signer.certificate.read_bytes()
    renew_certificate(signer.host("-1m:+20m"))
    assert signer.certificate.read_bytes() == kept


def test_a_command_that_makes_no_valid_certificate_is_named(signer):
    with pytest.raises(OutsideError, match="one: making an SSH certificate by `ssh-keygen") as caught:
        renew_certificate(signer.host("-2h:-1h"))

    assert str(signer.certificate) in caught.value.hint


@pytest.mark.parametrize(
    ("command", "told"), [("/no/such/program", "No such file"), ("sh -c 'echo the CA is down >&2; exit 7'", "CA is down")]
)
def test_a_command_that_fails_tells_what_it_said(signer, command, told):
    host = Host("one", "192.0.2.1", options=(("CertificateFile", str(signer.certificate)),), certificate_command=command)

    with pytest.raises(OutsideError, match=told):
        renew_certificate(host)
