"""What the tray shows of vfsd: status, menu and news, made from its objects alone; in the user's language."""

from __future__ import annotations

import gettext
from collections.abc import Container, Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from vfsd import names
from vfsd.cli.objects import MACHINE, SHARE, kind_at

_CATALOGUES = Path(__file__).parents[4] / "share/locale"
"""Beside the private folder of modules that `make install` makes; where there is none, Python's own place."""
_ = gettext.translation("vfsd", _CATALOGUES if _CATALOGUES.is_dir() else None, fallback=True).gettext

ACTIVE, ATTENTION = "Active", "NeedsAttention"
"""The status of a StatusNotifierItem. It is never Passive: many panels then show nothing at all, no menu either."""
SERVING = {"running", "paused", "starting", "stopping", "active", "listening"}
BROKEN = {"failed", "unavailable"}
STATES = {
    "stopped": _("Stopped"),
    "starting": _("Starting…"),
    "running": _("Running"),
    "paused": _("Paused"),
    "stopping": _("Stopping…"),
    "listening": _("Waiting for a client"),
    "active": _("In use"),
    "unavailable": _("Unavailable"),
    "failed": _("Failed"),
}
BASE_NAME_MAX = 40
"""Characters of a folder's name in the name of its share: with all of them escaped it still fits into a unit's."""

Properties = dict[str, Any]
Objects = dict[str, dict[str, Properties]]


class Deed(NamedTuple):
    """Something that can be done: how it is offered, the method that does it, and what is said if that fails."""

    label: str
    member: str
    failure: str


START = Deed(_("Start"), "Start", _("Could not start “%s”"))
SHUT_DOWN = Deed(_("Shut Down"), "Shutdown", _("Could not shut down “%s”"))
PAUSE = Deed(_("Pause"), "Pause", _("Could not pause “%s”"))
RESUME = Deed(_("Resume"), "Resume", _("Could not resume “%s”"))
THAW = RESUME._replace(member="Thaw")
FORCE_OFF = Deed(_("Force Off"), "Kill", _("Could not force off “%s”"))
STOP_SHARING = Deed(_("Stop Sharing"), "Remove", _("Could not stop sharing “%s”"))
OPEN_CONSOLE = Deed(_("Open Console"), "", _("Could not open the console of “%s”"))
SHOW_LOG = Deed(_("Show Log"), "", _("Could not show the log of “%s”"))
SHARE_FOLDER = Deed(_("Share a Folder…"), "", _("Could not share the folder"))
SHARE_CHOSEN = Deed("", "", _("Could not share “%s”"))
START_VFSD = Deed(_("Start vfsd"), "", _("Could not start vfsd"))
QUIT = Deed(_("Quit"), "", "")
CHOOSE_FOLDER = _("Share a Folder")


class Action(NamedTuple):
    """What is done when an item is pressed, and with which object."""

    deed: Deed
    path: str = ""


class Item(NamedTuple):
    """An entry of the menu; one without a label is a separator, one that does nothing is told and not offered."""

    key: str
    """Which entry it is, however its label changes."""
    label: str = ""
    action: Action | None = None
    children: tuple[Item, ...] = ()


class News(NamedTuple):
    """Something that its user should know of, though nobody asked: a title, more about it, and what helps."""

    title: str
    text: str
    actions: tuple[Action, ...] = ()


def title(scope: names.Scope) -> str:
    """Whose vfsd it is."""
    system = _("System")
    return "vfsd" if scope is names.Scope.USER else f"vfsd ({system})"


def broken(item: Properties) -> bool:
    """Whether a share or machine needs attention."""
    return item["State"] in BROKEN or _degraded(item)


def _degraded(item: Properties) -> bool:
    return bool(item.get("Degraded")) and item["State"] in SERVING


def status(objects: Objects) -> str:
    """The status of the whole."""
    return ATTENTION if any(broken(item) for kinds in objects.values() for item in kinds.values()) else ACTIVE


def tool_tip(objects: Objects) -> str:
    """What is broken, or else what runs, one line for each."""
    lines = {MACHINE: list[str](), SHARE: list[str]()}
    shown = broken if status(objects) == ATTENTION else lambda item: item["State"] in SERVING
    for kind, found in lines.items():
        own = kind.named(objects).values()
        found += [_line(item) for item in own if shown(item) and item.get("Machine", "/") == "/"]
    return "\n".join([*lines[MACHINE], *lines[SHARE]])


def state_words(item: Properties) -> str:
    """The state of a share or machine."""
    if _degraded(item) and item["State"] == "running":
        return _("Running, a share is broken")
    if item.get("Suspended"):
        return _("Suspended")
    return STATES.get(item["State"], STATES["failed"])


def _line(item: Properties) -> str:
    return _("{name}: {state}").format(name=item["Name"], state=state_words(item))


def menu(objects: Objects | None) -> tuple[Item, ...]:
    """The whole menu. :param objects: all shares and machines; None if vfsd does not run."""
    if objects is None:
        parts = [Item("gone", _("vfsd is not running")), _offer(START_VFSD)]
    else:
        machines = MACHINE.named(objects).values()
        alone = [item for item in SHARE.named(objects).values() if item["Machine"] == "/"]
        parts = [_machine(item, objects) for item in machines] or [Item("none", _("No machines"))]
        if alone:
            parts += [Item("1"), Item("shares", _("Shared folders")), *map(_share, alone)]
        parts += [Item("2"), _offer(SHARE_FOLDER)]
    return (*parts, Item("3"), _offer(QUIT))


def _offer(deed: Deed, path: str = "") -> Item:
    return Item(f"{path} {deed.label}", deed.label, Action(deed, path))


def _machine(item: Properties, objects: Objects) -> Item:
    path = names.machine_path(item["Name"])
    shares = (objects.get(share, {}).get(names.SHARE_INTERFACE) for share in item["Shares"])
    told = [*_reason(path, item), *(_own_share(share) for share in shares if share)]
    offered = [_offer(deed, path) for deed in deeds(item)]
    return Item(path, _line(item), None, (*told, *([Item(f"{path} -")] if told else []), *offered))


def _own_share(item: Properties) -> Item:
    template = _("{name}: {state} ({folder})") if "Source" in item else _("{name}: {state}")
    text = template.format(name=item["Tag"], state=state_words(item), folder=item.get("Source"))
    return Item(names.share_path(item["Name"]), text)


def _share(item: Properties) -> Item:
    path = names.share_path(item["Name"])
    told = [Item(f"{path} source", item["Source"])] if "Source" in item else []
    told += _reason(path, item)
    starts = (START,) if item["State"] in ("stopped", "failed") else ()
    offered = [_offer(deed, path) for deed in (*starts, STOP_SHARING, SHOW_LOG)]
    return Item(path, _line(item), None, (*told, *([Item(f"{path} -")] if told else []), *offered))


def _reason(path: str, item: Properties) -> Iterator[Item]:
    if broken(item) and item["Reason"]:
        yield Item(f"{path} reason", item["Reason"])


def deeds(machine: Properties) -> tuple[Deed, ...]:
    """What can be done with a machine as it is now."""
    by_state = {
        "running": (SHUT_DOWN, PAUSE, OPEN_CONSOLE, FORCE_OFF),
        "paused": (RESUME, OPEN_CONSOLE, FORCE_OFF),
        "starting": (OPEN_CONSOLE, FORCE_OFF),
        "stopping": (OPEN_CONSOLE, FORCE_OFF),
    }
    idle = (THAW if machine.get("Suspended") else START,)
    return (*by_state.get(machine["State"], idle), SHOW_LOG)


def news(path: str, before: Properties, now: Properties) -> News | None:
    """What a change of a share or machine means for its user, if anything.

    A share of a machine says nothing itself: the machine tells that it lost one.
    """
    name, kind = now["Name"], kind_at(path)
    if now.get("Machine", "/") != "/":
        return None
    log = Action(SHOW_LOG, path)
    if now["State"] in BROKEN and before["State"] not in BROKEN:
        helps = (Action(START, path), log) if now["State"] == "failed" else (log,)
        title = _("“%s” is unavailable") if now["State"] == "unavailable" else _("“%s” failed")
        return News(title % name, now["Reason"], helps)
    if _degraded(now) and not _degraded(before):
        return News(_("“%s” lost a share") % name, now["Reason"], (log,))
    healed = _degraded(before) and now["State"] == "running" and not _degraded(now)
    if healed or (kind is SHARE and before["State"] in BROKEN and now["State"] in SERVING):
        return News(_("“%s” works again") % name, "")
    return None


def share_name(folder: str, taken: Container[str]) -> str:
    """A name for the share of a folder: its own, made one that is valid and that no share has yet."""
    base = names.make_name(PurePath(folder).name).lstrip(".-")[:BASE_NAME_MAX] or "share"
    name, number = base, 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    return name
