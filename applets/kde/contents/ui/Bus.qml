import QtQuick
import org.kde.plasma.workspace.dbus as DBus

import "../code/logic.js" as Logic

/*
 * One vfsd on one bus: what it has, and calls to it.
 *
 * Looking never starts vfsd: there is no flag for that in Plasma's D-Bus module, so questions go to the unique name of
 * whoever has vfsd's name at the moment. Signals, where Plasma can hear them (6.4), only say when to look again.
 */
Item {
    id: root

    // "user" or "system".
    required property string scope
    // Whether this bus is asked at all.
    property bool isWanted: true
    // Whether somebody looks at what is here. Without signals it is looked up regularly only then, and while
    // something runs or is broken.
    property bool shown: false

    // Whether there is a vfsd, and whether its objects have been read.
    readonly property bool isThere: owner !== ""
    property bool isRead: false
    // Objects by path; see logic.js.
    property var objects: ({})
    // The unique name of vfsd's connection.
    property string owner: ""

    // The objects were looked up, and something had changed. started: when the question was asked, in ms since the epoch.
    // isFirst: there was nothing to compare with.
    signal changed(var before, var after, double started, bool isFirst)

    readonly property var connection: scope === "system" ? DBus.SystemBus : DBus.SessionBus
    readonly property int busType: scope === "system" ? DBus.BusType.System : DBus.BusType.Session
    // Each needs a module or type that may not be there: the first Plasma 6.4, the second Qt's folder model.
    readonly property Component signalsComponent: Qt.createComponent("Signals.qml")
    readonly property Component unitsComponent: Qt.createComponent("Units.qml")
    readonly property bool hearsSignals: signalsComponent.status === Component.Ready
    readonly property bool isQuiet: !Object.values(objects).some(item => Logic.isRunning(item) || Logic.isBroken(item))

    // Replies that are awaited, with what is done then. Nobody else keeps them from being collected.
    property var pending: []
    property bool isReading: false
    property bool readsAgain: false

    function send(service: string, path: string, iface: string, member: string, signature: string, args: var, done: var) {
        const message = {service: service, path: path, iface: iface, member: member};
        if (signature) {
            message.signature = "(" + signature + ")";
            message.arguments = args;
        }
        const reply = connection.asyncCall(message);
        const entry = {
            reply: reply,
            finished: () => {
                pending.splice(pending.indexOf(entry), 1);
                done(reply.isError ? reply.error.message : "", reply);
            }
        };
        pending.push(entry);
        reply.finished.connect(entry.finished);
    }

    // A reply may come when nobody is there any more.
    Component.onDestruction: pending.forEach(entry => entry.reply.finished.disconnect(entry.finished))

    // Call vfsd. D-Bus starts it if need be. done: called with the message of the error, or "".
    function call(path: string, iface: string, member: string, signature: string, args: var, done: var) {
        send("org.vfsd1", path, iface, member, signature, args, error => {
            done(error);
            refresh();
        });
    }

    function start(done: var) {
        send("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "StartServiceByName", "su", ["org.vfsd1", 0],
            message => done(message));
    }

    // Look at all objects; while that is under way, once more after it.
    function refresh() {
        if (!owner || isReading) {
            readsAgain = isReading;
            return;
        }
        const asked = owner;
        const started = Date.now();
        isReading = true;
        readsAgain = false;
        send(asked, Logic.ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", "", [], (error, reply) => {
            isReading = false;
            if (!error && asked === owner) {
                take(Logic.objects(Logic.plain(reply.value), scope), started);
            }
            if (readsAgain || asked !== owner) {
                soon.restart();
            }
        });
    }

    function take(after: var, started: double) {
        const before = objects;
        const isFirst = !isRead;
        isRead = true;
        if (isFirst || JSON.stringify(before) !== JSON.stringify(after)) {
            objects = after;
            changed(before, after, started, isFirst);
        }
    }

    function findOwner() {
        send("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetNameOwner", "s", ["org.vfsd1"],
            (error, reply) => {
                if (!error && watcher.registered) {
                    owner = Logic.plain(reply.value);
                    refresh();
                }
            });
    }

    function forget() {
        owner = "";
        isRead = false;
        const before = objects;
        objects = {};
        changed(before, {}, Date.now(), true);
    }

    onShownChanged: if (shown) {
        refresh();
    }

    DBus.DBusServiceWatcher {
        id: watcher
        busType: root.busType
        watchedService: root.isWanted ? "org.vfsd1" : ""
        onRegisteredChanged: registered ? root.findOwner() : root.forget()
    }

    // Many changes at once are one look, and there are no more than five a second.
    Timer {
        id: soon
        interval: 200
        onTriggered: root.refresh()
    }

    Timer {
        interval: 2000
        repeat: true
        running: root.isThere && !root.hearsSignals && (root.shown || !root.isQuiet)
        onTriggered: root.refresh()
    }

    Loader {
        id: signals
        sourceComponent: root.isThere && root.hearsSignals ? root.signalsComponent : null
        onLoaded: {
            item.busType = root.busType;
            item.service = root.owner;
            item.paths = Qt.binding(() => Object.keys(root.objects).sort());
        }
    }

    Connections {
        target: signals.item
        function onHeard() {
            soon.start();
        }
    }

    // Without signals: what starts and ends has a unit, and units have files, of which the kernel tells.
    Loader {
        id: units
        sourceComponent: root.isThere && !root.hearsSignals && root.unitsComponent.status === Component.Ready ? root.unitsComponent : null
        onLoaded: item.scope = root.scope
    }

    Connections {
        target: units.item
        function onHeard() {
            soon.start();
        }
    }
}
