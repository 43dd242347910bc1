"""What vfsctl --json prints is what docs/vfsctl.schema.json says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema

from tests.integration.conftest import only_system
from tests.integration.harness import Vfsd, wait_for
from tests.integration.vfsctl import SMALL, ok, running, vfsctl

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/vfsctl.schema.json").read_text(encoding="utf-8"))


def hold(command: str, document: Any) -> Any:
    """Hold a document against the schema of a command, and its objects against what the schema names."""
    rule = {"$ref": SCHEMA["properties"][command]["$ref"], "$defs": SCHEMA["$defs"]}
    jsonschema.Draft202012Validator(rule, format_checker=jsonschema.FormatChecker()).validate(document)
    return document


def printed(vfsd: Vfsd, command: str, *arguments: str) -> Any:
    """What a command prints, held against its schema."""
    return hold(command, vfsctl(vfsd, *command.removesuffix(" NAME").split(), *arguments, "--json").json())


def known(name: str, item: dict[str, Any]) -> None:
    """The schema names every member."""
    assert set(item) <= set(SCHEMA["$defs"][name]["properties"])


@only_system  # where there is somebody who sees less
def test_everything_is_as_the_schema_says(vfsd: Vfsd, folder: Path) -> None:
    with running(vfsd, "monitor", "--json") as monitor:
        wait_for(lambda: vfsd.manager("ListShares") is not None, "vfsd answers")
        printed(vfsd, "status")
        known(
            "Share",
            printed(vfsd, "share add", "src", str(folder), "--read-only", "-o", "TranslateUID=map:0:1:1"),
        )
        printed(vfsd, "share space", "src")
        made = printed(
            vfsd,
            "machine add",
            "dev",
            "--builtin",
            *SMALL,
            "--share",
            f"{folder}:/data",
            "-o",
            "Credentials=a=b",
        )
        known("Machine", made)
        ok(vfsd, "machine", "start", "dev")
        asked = ("machine", "query-guest", "dev")
        wait_for(lambda: vfsctl(vfsd, *asked).code == 0, "the guest's agent answers", 60)
        printed(vfsd, "machine query-guest", "dev")
        assert printed(vfsd, "guest-config", "dev")[0]["Where"] == "/data"
        assert len(printed(vfsd, "machine list")) == 1
        assert len(printed(vfsd, "share list")) == 2
        printed(vfsd, "machine show", "dev")
        known("Share", printed(vfsd, "share show", f"dev.{folder.name}"))
        known("Manager", printed(vfsd, "status")["Manager"])
        detailed = printed(vfsd, "status NAME", "dev")["Machine"]
        assert "TasksCurrent" in detailed["Used"] or "CPUUsageNSec" in detailed["Used"]
        printed(vfsd, "status NAME", f"dev.{folder.name}")
        [machine] = printed(vfsd, "top")["Machines"]
        assert len(machine["Shares"]) == 1
        printed(vfsd, "check")
        for kind, name, text in (("share", "x", f'source = "{folder}"'), ("machine", "y", "cpus = 2")):
            made = vfsctl(vfsd, kind, "import", "-", "--name", name, "--json", stdin=text).json()
            hold(f"{kind} import", made)
        ok(vfsd, "machine", "kill", "dev")
        for kind, name in (("machine", "y"), ("share", "x")):
            ok(vfsd, kind, "remove", name)
        monitor.terminate()
        lines = [json.loads(line) for line in monitor.communicate(timeout=20)[0].splitlines()]
    told = {hold("monitor", line)["Signal"] for line in lines}
    assert {"InterfacesAdded", "InterfacesRemoved", "StateChanged", "PropertiesChanged"} <= told
    _hold_what_others_see()


def _hold_what_others_see() -> None:
    """Another user sees less, and what is required nevertheless."""
    argv = Vfsd("user").argv(["vfsctl", "--system", "status", "--json"])
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    seen = hold("status", json.loads(done.stdout))
    assert "Source" not in seen["Shares"][0]
