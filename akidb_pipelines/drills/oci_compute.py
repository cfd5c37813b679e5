"""OCI Compute as far as a drill needs it: which instances there are, stopping and starting one, another one in its place.

`SOFTSTOP` may wait a quarter of an hour, so the power is cut by `STOP`. A1 hosts that are used up answer 500 InternalError with "Out of host
capacity". What is terminated must still be what was looked at (`if-match`), and is stopped first.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.oci import signed_in

_GONE = ("TERMINATING", "TERMINATED")
_FULL = "out of host capacity"
_SUCCESSOR, _TAG_LENGTH = "akidb-drill-successor-of", 100
"""Tag of an instance that was launched in the place of another one: a name alone says nothing of who is whose successor."""
_HINTS = {
    401: "sign in: look at ~/.oci/config, the key's fingerprint, and this machine's clock",
    404: "the group needs `manage instance-family` and `use virtual-network-family` in the compartment",
    412: "somebody changed that instance meanwhile: look at it, then try again",
}


class CapacityError(OutsideError):
    """No availability domain has room for the shape."""


@dataclass(frozen=True)
class Instance:
    """An instance as OCI tells it."""

    id: str
    name: str
    state: str
    """`RUNNING`, `STOPPED`, ..."""
    tags: Mapping[str, str]
    address: str
    """Private address of its first network card; empty while it has none."""


@dataclass
class Timing:
    """Time that OCI took and that says nothing of us, for the report."""

    capacity_s: float = 0.0
    notes: list[str] = field(default_factory=list)


class Compute:
    """The instances of a compartment.

    Args:
        settings: how to sign in.
        compartment: its OCID.
        endpoint: address of the API; empty: the region's.
        wait_s: the longest that an instance may take to change its state.
        poll_s: between two looks.

    Raises:
        InputError: there are no usable credentials.
    """

    def __init__(self, settings: Settings, compartment: str, endpoint: str = "", wait_s: float = 1800, poll_s: float = 10) -> None:
        from oci.core import ComputeClient, VirtualNetworkClient
        from oci.identity import IdentityClient

        what = f"instances of {compartment}"
        self._compute = signed_in(ComputeClient, settings, what, endpoint)
        self._network = signed_in(VirtualNetworkClient, settings, what, endpoint)
        self._identity = signed_in(IdentityClient, settings, what, endpoint)
        self._compartment, self._wait_s, self._poll_s = compartment, wait_s, poll_s
        self.timing = Timing()

    # --- asking

    def instances(self) -> list[Instance]:
        """Every instance that is not terminated.

        Raises:
            OutsideError: OCI does not answer, or refuses.
        """
        import oci

        with self._telling("listing instances"):
            listed = oci.pagination.list_call_get_all_results(self._compute.list_instances, self._compartment).data
            return [self._instance(i) for i in listed if i.lifecycle_state not in _GONE]

    def _instance(self, told: Any) -> Instance:
        return Instance(told.id, told.display_name, told.lifecycle_state, dict(told.freeform_tags or {}), self._address(told.id))

    def _address(self, instance_id: str) -> str:
        attachments = self._compute.list_vnic_attachments(self._compartment, instance_id=instance_id).data
        live = [a for a in attachments if a.lifecycle_state == "ATTACHED"]
        return str(self._network.get_vnic(live[0].vnic_id).data.private_ip) if live else ""

    # --- changing

    def stop(self, instance: Instance) -> None:
        """Cut its power; nothing happens if it is off."""
        self._act(instance, "STOP", "STOPPED")

    def start(self, instance: Instance) -> None:
        """Give it power; nothing happens if it is on."""
        self._act(instance, "START", "RUNNING")

    def _act(self, instance: Instance, action: str, state: str) -> None:
        with self._telling(f"{action} of {instance.name}"):
            found = self._compute.get_instance(instance.id)
            if found.data.lifecycle_state != state:
                self._compute.instance_action(instance.id, action, if_match=found.headers["etag"])
            self._wait(instance.id, instance.name, state)

    def replace(self, instance: Instance) -> str:
        """Launch another one like it, then terminate it. Called again, it does what is still missing. Returns the new OCID.

        Raises:
            CapacityError: no availability domain has room; the old one is as it was.
            OutsideError: OCI refuses, or takes too long.
        """
        with self._telling(f"replacing {instance.name}"):
            found = self._compute.get_instance(instance.id)
            others = self._compute.list_instances(self._compartment, display_name=instance.name).data
            mine = (i for i in others if (i.freeform_tags or {}).get(_SUCCESSOR) == instance.id[-_TAG_LENGTH:])
            successor = next((i.id for i in mine if i.lifecycle_state not in (*_GONE, "STOPPED")), "")
        new = successor or self._launch(found.data)
        with self._telling(f"waiting for the successor of {instance.name}"):
            self._wait(new, instance.name, "RUNNING")
        self._terminate(instance, found.headers["etag"])
        return new

    def _launch(self, old: Any) -> str:
        from oci.exceptions import RequestException, ServiceError
        from oci.retry import NoneRetryStrategy

        with self._telling(f"looking at the network of {old.display_name}"):
            details = self._details(old)
            domains = [d.name for d in self._identity.list_availability_domains(self._compartment).data]
        domains.sort(key=lambda name: name != old.availability_domain)
        # The same token for the same predecessor: a request whose answer was lost makes no second instance.
        token = hashlib.sha256(old.id.encode()).hexdigest()[:40]
        for domain in domains:
            details.availability_domain = domain
            began = time.monotonic()
            try:
                launched = self._compute.launch_instance(
                    details, opc_retry_token=f"{token}-{domain[-4:]}", retry_strategy=NoneRetryStrategy()
                )
            except RequestException:
                with self._telling(f"launching {old.display_name} in {domain}"):
                    raise
            except ServiceError as error:
                if _FULL not in str(error.message).lower():
                    with self._telling(f"launching {old.display_name} in {domain}"):
                        raise
                self.timing.capacity_s += time.monotonic() - began
                self.timing.notes.append(f"{domain} has no room for {old.shape}")
                continue
            if domain != old.availability_domain:
                self.timing.notes.append(f"{old.display_name} is in {domain} now, it was in {old.availability_domain}")
            return str(launched.data.id)
        raise CapacityError(
            f"launching {old.display_name}: {', '.join(domains)} have no room for {old.shape}",
            hint="try again later, or another shape; this says nothing of our recovery: the report tells it apart",
        )

    def _details(self, old: Any) -> Any:
        from oci.core.models import CreateVnicDetails, LaunchInstanceDetails, LaunchInstanceShapeConfigDetails

        attachment = self._compute.list_vnic_attachments(self._compartment, instance_id=old.id).data[0]
        vnic = self._network.get_vnic(attachment.vnic_id).data
        config = old.shape_config
        return LaunchInstanceDetails(
            availability_domain=old.availability_domain,
            compartment_id=self._compartment,
            display_name=old.display_name,
            shape=old.shape,
            shape_config=LaunchInstanceShapeConfigDetails(ocpus=config.ocpus, memory_in_gbs=config.memory_in_gbs)
            if config
            else None,
            source_details=old.source_details,
            # Without its host name: that is taken in the subnet until the old one is gone.
            create_vnic_details=CreateVnicDetails(subnet_id=vnic.subnet_id, nsg_ids=list(vnic.nsg_ids or [])),
            metadata=dict(old.metadata or {}),
            freeform_tags={**(old.freeform_tags or {}), _SUCCESSOR: old.id[-_TAG_LENGTH:]},
        )

    def _terminate(self, instance: Instance, etag: str) -> None:
        with self._telling(f"terminating the old {instance.name}"):
            found = self._compute.get_instance(instance.id)
            if found.data.lifecycle_state in _GONE:
                return
            if found.data.lifecycle_state != "STOPPED":
                raise OutsideError(
                    f"{instance.name} ({instance.id}) runs again: it is not terminated", hint="look at it in OCI's console"
                )
            # Its disk stays until somebody has seen that what came back is good.
            self._compute.terminate_instance(instance.id, preserve_boot_volume=True, if_match=etag)
            self.timing.notes.append(
                f"the boot volume of the old {instance.name} ({instance.id}) is kept: remove it when all is well"
            )

    def _wait(self, instance_id: str, name: str, state: str) -> None:
        import oci

        try:
            oci.wait_until(
                self._compute,
                self._compute.get_instance(instance_id),
                evaluate_response=lambda r: r.data.lifecycle_state == state or r.data.lifecycle_state in _GONE,
                max_interval_seconds=self._poll_s,
                max_wait_seconds=self._wait_s,
            )
        except oci.exceptions.MaximumWaitTimeExceeded as error:
            found = self._compute.get_instance(instance_id).data.lifecycle_state
            raise OutsideError(
                f"{name} ({instance_id}) is {found} and not {state} after {self._wait_s:g} s",
                hint="look at it in OCI's console; akidb-pipelines drills recover goes on from there",
            ) from error
        found = self._compute.get_instance(instance_id).data.lifecycle_state
        if found != state:
            raise OutsideError(f"{name} ({instance_id}) is {found}, not {state}", hint="look at it in OCI's console")

    @contextmanager
    def _telling(self, tried: str) -> Iterator[None]:
        from oci.exceptions import RequestException, ServiceError

        try:
            yield
        except ServiceError as error:
            told = f"{error.status} {error.code}: {error.message} (request {error.request_id})"
            hint = "OCI's limits are reached: raise them, or free some" if error.code == "LimitExceeded" else ""
            raise OutsideError(
                f"OCI: {tried}: {told}", hint=hint or _HINTS.get(error.status, "look at OCI's status page")
            ) from error
        except RequestException as error:
            raise OutsideError(f"OCI: {tried}: {error}", hint="check the network, and OCI's status page") from error
