"""A StatusNotifierItem with a menu (com.canonical.dbusmenu) on the session bus, which panels of desktops show."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vfsd.cli.tray_menu import ACTIVE, ATTENTION, Action, Item
from vfsd.cli.values import Typed

if TYPE_CHECKING:
    from vfsd.cli.proxy import Answer, Client

WATCHER = "org.kde.StatusNotifierWatcher"
ITEM = "org.kde.StatusNotifierItem"
ITEM_PATH = "/StatusNotifierItem"
MENU = "com.canonical.dbusmenu"
MENU_PATH = "/StatusNotifierItem/Menu"
PROPERTIES = "org.freedesktop.DBus.Properties"
ICON = "org.vfsd1.vfsd"
ROOT = ""
"""The key of the whole menu, which comes first and so gets the id that it must have, 0."""


class StatusItem:
    """What a panel sees. It is told of changes, and asks for the rest."""

    def __init__(self, client: Client, title: str, press: Callable[[Action], None]) -> None:
        self._client = client
        self._title = title
        self._press = press
        self._status = ACTIVE
        self._tool_tip = ""
        self._root = Item(ROOT)
        self._revision = 0
        self._count = itertools.count()
        self._ids: dict[str, int] = {}
        """Ids of entries by key. An entry that stays keeps its own, so that a menu may change while it is open."""
        self._items: dict[int, Item] = {}
        self._number()

    def offer(self, bus_name: str) -> None:
        """Answer from now on. :param bus_name: a name of the connection, by which a panel can find it."""
        self._bus_name = bus_name
        for path, interface, properties, methods in (
            (ITEM_PATH, ITEM, self._item_properties, {}),
            (MENU_PATH, MENU, self._menu_properties, self._menu_methods()),
        ):
            self._client.serve(path, _methods(interface, properties, methods))

    async def register(self) -> None:
        """Make it known to the watcher. :raise CallFailed: there is none, or it does not want it."""
        arguments = ("/StatusNotifierWatcher", WATCHER, "RegisterStatusNotifierItem", "s", self._bus_name)
        await self._client.call(*arguments, destination=WATCHER, look=True)

    def show(self, status: str, tool_tip: str, menu: tuple[Item, ...]) -> None:
        """Tell what changed."""
        if status != self._status:
            self._status = status
            self._client.emit(ITEM_PATH, ITEM, "NewStatus", "s", status)
        if tool_tip != self._tool_tip:
            self._tool_tip = tool_tip
            self._client.emit(ITEM_PATH, ITEM, "NewToolTip")
        if menu != self._root.children:
            self._root = Item(ROOT, "", None, menu)
            self._number()
            self._revision += 1
            self._client.emit(MENU_PATH, MENU, "LayoutUpdated", "ui", self._revision, 0)

    def _number(self) -> None:
        def entries(item: Item) -> Iterator[Item]:
            yield item
            for child in item.children:
                yield from entries(child)

        before, self._ids, self._items = self._ids, {}, {}
        for item in entries(self._root):
            number = before[item.key] if item.key in before else next(self._count)
            self._ids[item.key], self._items[number] = number, item

    def _item_properties(self) -> dict[str, Typed]:
        symbol, attention = f"{ICON}-symbolic", f"{ICON}-attention-symbolic"
        texts = {
            "Category": "SystemServices",
            "Id": "vfsd",
            "Title": self._title,
            "Status": self._status,
            "IconName": symbol,
            "IconThemePath": "",
            "IconAccessibleDesc": self._title,
            "OverlayIconName": "",
            "AttentionIconName": attention,
            "AttentionAccessibleDesc": self._tool_tip or self._title,
            "AttentionMovieName": "",
        }
        icon = attention if self._status == ATTENTION else symbol
        return {
            **{name: Typed("s", text) for name, text in texts.items()},
            "ToolTip": Typed("(sa(iiay)ss)", [icon, [], self._title, self._tool_tip]),
            "ItemIsMenu": Typed("b", True),
            "Menu": Typed("o", MENU_PATH),
            "WindowId": Typed("i", 0),
        }

    def _menu_properties(self) -> dict[str, Typed]:
        return {
            "Version": Typed("u", 3),
            "TextDirection": Typed("s", "ltr"),
            "Status": Typed("s", "notice" if self._status == ATTENTION else "normal"),
            "IconThemePath": Typed("as", []),
        }

    def _menu_methods(self) -> dict[tuple[str, str], Callable[..., Answer | None]]:
        def get_layout(parent: int, depth: int, _: list[str]) -> Answer | None:
            item = self._items.get(parent)
            return item and ("u(ia{sv}av)", self._revision, self._layout(item, depth))

        def get_group_properties(ids: list[int], _: list[str]) -> Answer:
            wanted = [number for number in ids or self._items if number in self._items]
            return "a(ia{sv})", [[number, item_properties(self._items[number])] for number in wanted]

        def get_property(number: int, name: str) -> Answer | None:
            found = item_properties(self._items[number]).get(name) if number in self._items else None
            return found and ("v", found)

        def event(number: int, kind: str, *_: Any) -> Answer | None:
            if number not in self._items:
                return None
            action = self._items[number].action
            if kind == "clicked" and action:
                self._press(action)
            return ("",)

        def event_group(events: list[list[Any]]) -> Answer:
            return "ai", [each[0] for each in events if event(*each) is None]

        return {
            ("GetLayout", "iias"): get_layout,
            ("GetGroupProperties", "aias"): get_group_properties,
            ("GetProperty", "is"): get_property,
            ("Event", "isvu"): event,
            ("EventGroup", "a(isvu)"): event_group,
            ("AboutToShow", "i"): lambda _: ("b", False),
            ("AboutToShowGroup", "ai"): lambda ids: ("aiai", [], [i for i in ids if i not in self._items]),
        }

    def _layout(self, item: Item, depth: int) -> list[Any]:
        children = [] if depth == 0 else [self._layout(child, depth - 1) for child in item.children]
        return [
            self._ids[item.key],
            item_properties(item),
            [Typed("(ia{sv}av)", child) for child in children],
        ]


def item_properties(item: Item) -> dict[str, Typed]:
    """An entry's properties, but for those that have their default."""
    if item.children or item.key == ROOT:
        shown = {"label": Typed("s", _plain(item.label))} if item.label else {}
        return {**shown, "children-display": Typed("s", "submenu")}
    if not item.label:
        return {"type": Typed("s", "separator")}
    label = {"label": Typed("s", _plain(item.label))}
    return label if item.action else {**label, "enabled": Typed("b", False)}


def _plain(label: str) -> str:
    """A label without access keys: one _ in it would make its next letter one."""
    return label.replace("_", "__")


def _methods(
    interface: str,
    properties: Callable[[], dict[str, Typed]],
    methods: dict[tuple[str, str], Callable[..., Answer | None]],
) -> dict[Any, Callable[..., Answer | None]]:
    def get(asked: str, name: str) -> Answer | None:
        found = properties().get(name) if asked == interface else None
        return found and ("v", found)

    def get_all(asked: str) -> Answer:
        return "a{sv}", properties() if asked == interface else {}

    return {
        (PROPERTIES, "Get", "ss"): get,
        (PROPERTIES, "GetAll", "s"): get_all,
        **{(interface, *name): method for name, method in methods.items()},
    }
