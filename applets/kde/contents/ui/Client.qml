import QtQuick

import "../code/logic.js" as Logic
import "../code/words.js" as Words

// All that is known of shares and machines on the buses that are asked, and all that can be done with them.
Item {
    id: root

    // "user", "system" or "both".
    property string bus: "user"
    property bool shown: false

    // Whether there is any vfsd, and whether all that there are have been read.
    property bool isThere: false
    property bool isRead: false
    // Objects by key (scope and path); see logic.js.
    property var items: ({})
    // Keys of objects with a call under way.
    property var busy: ({})
    readonly property string status: Logic.status(Object.values(items))
    readonly property ListModel rows: ListModel {}
    readonly property Command command: Command {}

    // Something happened that the user did not do here; what: see Logic.news.
    signal happened(string what, var item)
    // What the user did here failed; item: null, or what it was about.
    signal failed(string title, string message, var item)

    // Which changes are the user's own doing, by key: how many calls are pending, and until when (ms since the epoch) after the
    // last one.
    property var own: ({})
    // What is done once a machine has ended, by key.
    property var restarting: ({})

    function item(key: string): var {
        return items[key] ?? null;
    }

    function shares(machine: var): var {
        return machine.shares.map(path => items[machine.scope + path]).filter(one => one);
    }

    function busOf(scope: string): Bus {
        return scope === "system" ? systemBus : userBus;
    }

    // verb: one of those of Words.action.
    function act(item: var, verb: string) {
        const words = Words.action(verb, item.name);
        const done = report(words.failure, item);
        switch (verb) {
        case "shutdown":
            perform(item, "Shutdown", "t", [0], done);
            break;
        case "restart":
            restart(item, done);
            break;
        case "remove":
            stopSharing(item, done);
            break;
        case "console":
            command.openTerminal(["vfsctl", "--" + item.scope, "console", item.name], done);
            break;
        case "log":
            command.openTerminal(Logic.journal(item), done);
            break;
        default:
            perform(item, {start: "Start", pause: "Pause", resume: "Resume", thaw: "Thaw", kill: "Kill"}[verb], "", [], done);
        }
    }

    // What tells of an error under this title, if there is one; item: what it is about, if anything.
    function report(title: string, item: var): var {
        return message => {
            if (message) {
                failed(title, message, item);
            }
        };
    }

    // Have a machine shut down, and start it again once it has. A guest that lost a share may never be done with it, so this one
    // has 20 s, in µs.
    function restart(item: var, done: var) {
        const keys = keysOf(item);
        begin(item.key, keys);
        perform(item, "Shutdown", "t", [20000000], message => {
            if (message) {
                end(item.key, keys);
                done(message);
            } else {
                restarting[item.key] = () => {
                    end(item.key, keys);
                    perform(item, "Start", "", [], done);
                };
            }
        });
    }

    // End and forget a share of no machine; a client that is connected loses it.
    function stopSharing(item: var, done: var) {
        const remove = message => message ? done(message) : perform(item, "Remove", "", [], done);
        item.state === "active" ? perform(item, "Stop", "", [], remove) : remove("");
    }

    function shareFolder(folder: string) {
        const taken = Object.values(userBus.objects).filter(one => one.kind === "share").map(one => one.name);
        const args = [Logic.shareName(folder, taken), folder, {"Persistent": false}];
        userBus.call(Logic.ROOT, Logic.MANAGER, "CreateShare", "ssa{sv}", args, report(Words.filled(i18n("Could not share “%s”"), folder), null));
    }

    function startService() {
        [userBus, systemBus].filter(one => one.isWanted && !one.isThere).forEach(one => one.start(report(i18n("Could not start vfsd"), null)));
    }

    // done: called with the error's message, or "".
    function perform(item: var, member: string, signature: string, args: var, done: var) {
        const bus = busOf(item.scope);
        const iface = item.kind === "machine" ? Logic.MACHINE : Logic.SHARE;
        const keys = keysOf(item);
        begin(item.key, keys);
        const ended = message => {
            end(item.key, keys);
            bus.refresh();
            done(message);
        };
        // Without the engine nobody is asked to authenticate, and vfsd says what is needed.
        if (item.scope === "user" || !command.isThere) {
            bus.call(item.path, iface, member, signature, args, ended);
        } else {
            command.run(Logic.authorisedCall(item.path, iface, member, signature, args),
                result => ended(result.code === 0 ? "" : result.error.replace(/^Call failed: /, "")));
        }
    }

    // What an action on it may change.
    function keysOf(item: var): var {
        return Logic.related(busOf(item.scope).objects, item.path).map(path => item.scope + path);
    }

    function begin(key: string, keys: var) {
        keys.forEach(one => own[one] = {pending: (own[one]?.pending ?? 0) + 1, until: 0});
        busy[key] = (busy[key] ?? 0) + 1;
        busyChanged();
    }

    function end(key: string, keys: var) {
        busy[key] -= 1;
        busyChanged();
        // What a call brings about may be seen a moment after its reply.
        keys.forEach(one => own[one] = {pending: own[one].pending - 1, until: Date.now() + 1000});
    }

    function look(before: var, after: var, started: double, isFirst: bool) {
        collect();
        if (isFirst) {
            return;
        }
        for (const one of Logic.news(before, after)) {
            if (!isOwnDoing(one.item.key, started)) {
                happened(one.what, one.item);
            }
        }
        for (const key of Object.keys(restarting)) {
            const item = items[key];
            if (!item || ["stopped", "failed"].includes(item.state)) {
                const again = restarting[key];
                delete restarting[key];
                again();
            }
        }
    }

    function isOwnDoing(key: string, when: double): bool {
        const own = root.own[key];
        return own !== undefined && (own.pending > 0 || when <= own.until);
    }

    function collect() {
        const all = {};
        let someThere = false;
        let allRead = true;
        for (const bus of [userBus, systemBus]) {
            someThere = someThere || bus.isThere;
            allRead = allRead && (bus.isRead || !bus.isThere);
            Object.values(bus.objects).forEach(one => all[one.key] = one);
        }
        items = all;
        isThere = someThere;
        isRead = someThere && allRead;
        arrange(Logic.rows(Object.values(all)));
    }

    // Bring the rows into this order with as few changes as possible: a row that is open stays so.
    function arrange(wanted: var) {
        const keys = wanted.map(row => row.key);
        for (let index = rows.count - 1; index >= 0; index--) {
            if (!keys.includes(rows.get(index).key)) {
                rows.remove(index);
            }
        }
        wanted.forEach((row, index) => {
            if (index >= rows.count || rows.get(index).key !== row.key) {
                rows.insert(index, row);
            }
        });
    }

    Bus {
        id: userBus
        scope: "user"
        isWanted: root.bus !== "system"
        shown: root.shown
        onChanged: (before, after, started, isFirst) => root.look(before, after, started, isFirst)
        onIsThereChanged: root.collect()
    }

    Bus {
        id: systemBus
        scope: "system"
        isWanted: root.bus !== "user"
        shown: root.shown
        onChanged: (before, after, started, isFirst) => root.look(before, after, started, isFirst)
        onIsThereChanged: root.collect()
    }
}
