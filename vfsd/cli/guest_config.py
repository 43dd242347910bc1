"""`vfsctl guest-config`: what to write into a guest that can't be told from outside which shares to mount."""

from __future__ import annotations

import posixpath
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from vfsd.cli.errors import CliError
from vfsd.cli.objects import MACHINE, SHARE
from vfsd.cli.output import clean, print_json
from vfsd.cli.session import Session, global_options, pass_session
from vfsd.mounting import BEFORE_LOCAL, FILE_SYSTEM, Mount, fits_fstab, fstab_line, in_order

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client, Objects

_UNIT_FOLDER = "/etc/systemd/system"
_AUTOMOUNT = "x-systemd.automount"
_OF_FSTAB = ("nofail", "noauto", "auto", "_netdev", "defaults")
"""Words that a unit's Options= has no use for: its dependencies say the same."""


def fstab(mounts: Sequence[Mount], machine: str) -> str:
    """Lines for /etc/fstab that every mount(8) reads."""
    lines = [f"# For /etc/fstab in the guest of {machine}; the directories have to be there"]
    return "\n".join([*lines, *(fstab_line(_neutral(mount)) for mount in mounts)])


def systemd(mounts: Sequence[Mount], machine: str) -> str:
    """A mount unit for each share, and an automount unit where that is wanted."""
    parts, wanted = [f"# Units for the guest of {machine}"], []
    for mount in mounts:
        automatic = _AUTOMOUNT in mount.options
        parts.append(f"# {_UNIT_FOLDER}/{mount.unit}\n{_mount_unit(mount, installed=not automatic)}")
        if automatic:
            name = mount.unit.removesuffix(".mount") + ".automount"
            parts.append(f"# {_UNIT_FOLDER}/{name}\n{_automount_unit(mount)}")
            wanted.append(name)
        elif "noauto" not in mount.options:
            wanted.append(mount.unit)
    if wanted:
        quoted = " ".join(f"'{name}'" for name in wanted)  # such a name has no quote in it
        parts.append(f"# Then: systemctl daemon-reload; systemctl enable --now {quoted}")
    return "\n\n".join(parts)


def nixos(mounts: Sequence[Mount], machine: str) -> str:
    """A module of NixOS."""
    lines = [f"# For the guest of {machine}: add it to the imports of its configuration.nix", "{"]
    for mount in mounts:
        if "\\" in mount.tag + mount.where:
            raise CliError(f"NixOS can't express {_named(mount)}: it has a backslash")
        options = " ".join(_nix(word) for word in mount.options)
        lines += [
            f"  fileSystems.{_nix(mount.where)} = {{",
            f"    device = {_nix(mount.tag)};",
            f'    fsType = "{FILE_SYSTEM}";',
            f"    options = [ {options} ];",
            "  };",
        ]
    return "\n".join([*lines, "}"])


def cloud_init(mounts: Sequence[Mount], machine: str) -> str:
    """User data of cloud-init.

    Its own `mounts:` takes the first field for a disk's name, and escapes nothing.
    """
    lines = ["#cloud-config", f"# User data for the guest of {machine}"]
    if not mounts:
        return "\n".join(lines)
    neutral = [_neutral(mount) for mount in mounts]
    content = "".join(f"{fstab_line(mount)}\n" for mount in neutral)
    lines += ["write_files:", "  - path: /etc/fstab", "    append: true", f"    content: {_yaml(content)}"]
    lines.append("runcmd:")
    for mount in neutral:
        lines.append(f'  - ["mkdir", "-p", {_yaml(mount.where)}]')
        if "noauto" not in mount.options:
            lines.append(f'  - ["mount", {_yaml(mount.where)}]')
    return "\n".join(lines)


FORMATS: Mapping[str, Callable[[Sequence[Mount], str], str]] = {
    "fstab": fstab,
    "systemd": systemd,
    "nixos": nixos,
    "cloud-init": cloud_init,
}


@click.command("guest-config")
@click.argument("machine")
@click.option("--format", "wanted", type=click.Choice(list(FORMATS)), default="fstab", show_default=True)
@global_options
@pass_session
def guest_config(session: Session, machine: str, wanted: str) -> None:
    """What to write into the guest of MACHINE so that it mounts its shares.

    A guest with systemd 254 or later, and the built-in one, need none of it: vfsd tells them. A share without a mount
    point is mounted below /mnt, at its tag.
    """

    async def body(client: Client) -> list[Mount]:
        return mounts_of(await MACHINE.show(client, machine), await client.objects())

    mounts = session.run(body)
    if session.json:
        print_json([_fields(mount) for mount in mounts])
        return
    for mount in mounts:
        if wanted != "systemd" and not fits_fstab(mount):
            raise CliError(
                f"in {wanted} there is no way to write {_named(mount)}",
                "set a Tag that does not begin with #.",
            )
    text = FORMATS[wanted](mounts, machine)
    click.echo("\n".join(map(clean, text.split("\n"))) if sys.stdout.isatty() else text)


def mounts_of(machine: Mapping[str, Any], objects: Objects) -> list[Mount]:
    """What the guest of a machine is to mount, outer mount points first; all its shares but the root.

    :raise CliError: no configuration can express one of them.
    """
    mounts = []
    for share in (objects[path][SHARE.interface] for path in machine["Shares"] if path in objects):
        if machine["RootShare"] in (share["Tag"], share["Name"]):
            continue
        where = share["MountPoint"] or posixpath.join("/mnt", share["Tag"].lstrip("/"))
        mount = Mount.of(share["Tag"], where, share["MountOptions"], read_only=share["ReadOnly"])
        if mount.complaint:
            raise CliError(
                f'no configuration can express share "{share["Name"]}": {mount.complaint}',
                "set another Tag or MountPoint.",
            )
        mounts.append(mount)
    return in_order(mounts)


def _named(mount: Mount) -> str:
    return f'the share with tag "{mount.tag}" at {mount.where}'


def _fields(mount: Mount) -> dict[str, str]:
    options = ",".join(mount.options)
    return {"What": mount.tag, "Where": mount.where, "Type": FILE_SYSTEM, "Options": options}


def _neutral(mount: Mount) -> Mount:
    """Without what vfsd itself adds for systemd: busybox passes on to the kernel whatever it doesn't know."""
    options = tuple(word for word in mount.options if word != BEFORE_LOCAL)
    return Mount(mount.tag, mount.where, options)


def _mount_unit(mount: Mount, *, installed: bool) -> str:
    words = [word for word in mount.options if word not in _OF_FSTAB and not word.startswith(("x-", "X-"))]
    if "nofail" in mount.options and BEFORE_LOCAL not in mount.options:
        words.append("nofail")  # with it systemd does not let the boot wait
    left_out = [word for word in mount.options if word.startswith(("x-", "X-"))]
    left_out = [word for word in left_out if word not in (_AUTOMOUNT, BEFORE_LOCAL)]
    lines = [f"# Not for units: {','.join(left_out)}"] if left_out else []
    lines += ["[Unit]", f"Description=virtio-fs share {_value(mount.tag)}", "", "[Mount]"]
    lines += [f"What={_value(mount.tag)}", f"Where={_value(mount.where)}", f"Type={FILE_SYSTEM}"]
    lines.append(f"Options={_value(','.join(words))}")
    if installed and "noauto" not in mount.options:
        lines += ["", *_install(mount)]
    return "\n".join(lines)


def _automount_unit(mount: Mount) -> str:
    lines = ["[Unit]", f"Description=virtio-fs share {_value(mount.tag)}", "", "[Automount]"]
    return "\n".join([*lines, f"Where={_value(mount.where)}", "", *_install(mount)])


def _install(mount: Mount) -> list[str]:
    how = "WantedBy" if "nofail" in mount.options else "RequiredBy"
    return ["[Install]", f"{how}=local-fs.target"]


def _value(text: str) -> str:
    """A text in a unit file, where only % has a meaning that the mount's own checks leave."""
    return text.replace("%", "%%")


def _nix(text: str) -> str:
    for odd, escaped in (("\\", "\\\\"), ('"', '\\"'), ("${", "\\${"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(odd, escaped)
    return f'"{text}"'


def _yaml(text: str) -> str:
    """A text in double quotes, as YAML has them."""
    return '"' + "".join(_yaml_character(character) for character in text) + '"'


def _yaml_character(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character == "\n":
        return "\\n"
    return character if character.isprintable() else f"\\U{ord(character):08x}"
