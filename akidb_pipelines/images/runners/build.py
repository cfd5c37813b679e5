"""Building a runner image with Packer and Ansible: what goes in, what came out, and nothing left behind.

<builds>/runners/<runner>/<week>/build.json     what came out, written last; archiving takes it from there
                                 facts.json     tools and packages, as Ansible found them in the image
                                 packer.log
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from akidb_pipelines.errors import CheckError, InputError, OutsideError, PipelineError
from akidb_pipelines.files import scratch_folder, write_whole
from akidb_pipelines.images.runners import probe
from akidb_pipelines.images.runners.engine import Engine
from akidb_pipelines.images.runners.fleet import Runner
from akidb_pipelines.images.runners.packer import Packer, find_packer, run_packer
from akidb_pipelines.periods import Week
from akidb_pipelines.progress import Progress, Report

_BUILD, _FACTS, _LOG = "build.json", "facts.json", "packer.log"
_GRACE_SECONDS, _MACHINE_GRACE_SECONDS = 60, 900
"""For Packer to clean up: containers go at once, instances of a cloud and virtual machines take minutes."""


@dataclass(frozen=True)
class Built:
    """What came out of a build."""

    runner: str
    week: str
    builder: str
    build_id: str
    image: str
    """Its name: `akidb/runner-docker:...`, an OCID, a Tart machine."""
    image_id: str
    base: str
    base_id: str
    packer: str
    template_sha256: str
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    """See probe.probe."""


@dataclass(frozen=True)
class Workplace:
    """Where builds happen.

    Args:
        folder: of what came out of builds.
        scratch: for what Packer and Ansible need meanwhile, such as SSH keys.
        deploy: has `ansible/`.
    """

    folder: Path
    scratch: Path
    deploy: Path

    def load(self, runner: str, week: Week) -> Built:
        """What was built for a week.

        Raises:
            InputError: nothing was.
        """
        path = self._of(runner, week) / _BUILD
        hint = f"akidb-pipelines runners build {runner} --week {week}"
        try:
            return Built(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            raise InputError(f"{runner} was not built for {week}, or its build is archived already", hint=hint) from None
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"the build in {path} cannot be read: {error}", hint=hint) from error

    def forget(self, runner: str, week: Week) -> None:
        """Drop what is archived now."""
        shutil.rmtree(self._of(runner, week), ignore_errors=True)

    def waiting(self, runner: str) -> set[str]:
        """Ids of the builds that wait to be archived; one that cannot be read cannot be archived, either."""
        found = set()
        for path in (self.folder / runner).glob(f"*/{_BUILD}"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                found.add(str(json.loads(path.read_bytes())["build_id"]))
        return found

    def _of(self, runner: str, week: Week) -> Path:
        return self.folder / runner / week.iso

    def build(self, runner: Runner, week: Week, report: Report = lambda _: None) -> Built:
        """Build a runner for a week. The caller sees to it that nobody else builds the same runner.

        Raises:
            CheckError: a tool is missing, or in the wrong version; the message says which, wanted, found.
            OutsideError: Packer fails, or takes too long; nothing of the build is left.
        """
        packer, begun = find_packer(), perf_counter()
        if not shutil.which("ansible-playbook"):
            raise OutsideError("building a runner needs Ansible, which is not installed", hint="apt-get install ansible-core")
        engine = Engine(runner.docker_host) if runner.builder == "docker" else None
        build_id = f"{week.iso.lower()}-{secrets.token_hex(4)}"
        folder = self._of(runner.name, week)
        try:
            if engine:
                self._expect_base(engine, runner)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            if engine:
                self._sweep(engine, runner.name, report)
            unstick = partial(engine.sweep_containers, runner.name) if engine else lambda: None
            artifact = self._run(packer, runner, week, build_id, folder, report, unstick)
            facts = _facts(folder / _FACTS, runner)
            name = f"{_repository(runner.name)}:{build_id}" if engine else artifact
            image_id = engine.image_id(name) if engine else artifact
            if not image_id:
                raise OutsideError(
                    f"runner {runner.name}: Packer ended well, and named no image",
                    hint=f"does the template of {runner.template} make one?",
                )
            built = Built(
                runner=runner.name,
                week=week.iso,
                builder=runner.builder,
                build_id=build_id,
                image=name,
                image_id=image_id,
                base=runner.base,
                base_id=engine.image_id(runner.base) if engine else runner.base,  # now: Packer may have pulled another
                packer=packer.version_text,
                template_sha256=self._template_sha256(runner),
                seconds=perf_counter() - begun,
                facts=facts,
            )
            write_whole(folder / _BUILD, json.dumps(asdict(built)).encode())
            return built
        except BaseException as error:
            if engine:
                with suppress(PipelineError):  # what went wrong before is what counts; the next build sweeps again
                    self._sweep(engine, runner.name, report)
            if isinstance(error, OSError):
                raise OutsideError(f"building in {folder}: {error}", hint="free some space, or move AKIDB_HOME") from error
            raise
        finally:
            if engine:
                engine.close()

    def _expect_base(self, engine: Engine, runner: Runner) -> None:
        if not engine.image_id(runner.base) and (runner.packer or {}).get("pull") != "true":
            raise InputError(
                f"runner {runner.name}: base image {runner.base} is not in the engine",
                hint='akidb-pipelines lab up runner makes the lab\'s; set akidb_runner_packer: {pull: "true"} to have it pulled',
            )

    def _sweep(self, engine: Engine, runner: str, report: Report) -> None:
        """Remove what a killed build has left; what waits to be archived stays."""
        swept = engine.sweep(runner, _repository(runner), keep_builds=self.waiting(runner))
        if swept.containers or swept.images:
            told = f"{len(swept.containers)} containers and {len(swept.images)} images that builds had left"
            report(Progress(f"removed {told}"))

    def _run(
        self,
        packer: Packer,
        runner: Runner,
        week: Week,
        build_id: str,
        folder: Path,
        report: Report,
        unstick: Callable[[], object],
    ) -> str:
        with scratch_folder(self.scratch) as scratch:
            variables = scratch / "ansible.json"
            variables.write_text(
                json.dumps(
                    {
                        **(runner.ansible or {}),
                        "akidb_tools": [asdict(tool) for tool in runner.tools],
                        "akidb_probe": probe.__file__,
                        "akidb_output": str(folder),
                    }
                )
            )
            told = {
                **(runner.packer or {}),
                "runner": runner.name,
                "week": week.iso,
                "build_id": build_id,
                "base": runner.base,
                "output": str(folder),
                "playbook": str(self.deploy / "ansible" / "runner.yaml"),
                "ansible_variables": str(variables),
            }
            if runner.builder == "docker":
                told["repository"] = _repository(runner.name)
            grace = _GRACE_SECONDS if runner.builder == "docker" else _MACHINE_GRACE_SECONDS
            environment = {"TMPDIR": str(scratch), "ANSIBLE_LOCAL_TEMP": str(scratch)}
            if runner.docker_host:
                environment["DOCKER_HOST"] = runner.docker_host
            try:
                return run_packer(
                    packer, runner.template, told, environment, folder / _LOG, runner.timeout_seconds, report, unstick, grace
                )
            except PipelineError as error:
                if problems := _problems(folder / _FACTS):
                    raise CheckError(
                        f"runner {runner.name}: {'; '.join(problems)}",
                        hint=f"install it in deploy/ansible/roles/runner, or correct akidb_runner_tools; log: {folder / _LOG}",
                    ) from error
                raise

    def _template_sha256(self, runner: Runner) -> str:
        """Digest of all that a build is made by: template, Ansible role, probe."""
        digest = hashlib.sha256(Path(probe.__file__).read_bytes())
        for root in (runner.template, self.deploy / "ansible"):
            for path in sorted(p for p in root.rglob("*") if p.is_file()):
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()


def _repository(runner: str) -> str:
    return f"akidb/runner-{runner}"


def _facts(path: Path, runner: Runner) -> dict[str, Any]:
    """What Ansible found in the image.

    Raises:
        OutsideError: it found nothing.
    """
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise OutsideError(
            f"runner {runner.name}: Packer ended well, and the Ansible role left no facts in {path}: {error}",
            hint=f"does the template in {runner.template} play deploy/ansible/runner.yaml?",
        ) from error


def _problems(facts: Path) -> list[str]:
    try:
        return list(json.loads(facts.read_bytes())["problems"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
