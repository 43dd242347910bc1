import QtQuick
import QtQml.Models
import org.kde.plasma.workspace.dbus as DBus

import "../code/logic.js" as Logic

// Hears that something of one vfsd changed; what, is looked up. A watcher needs an exact path, so each object has its own.
Item {
    id: root

    property int busType: DBus.BusType.Session
    property string service: ""
    property var paths: []

    signal heard()

    // What changed before a new object's watcher was there was not heard.
    onPathsChanged: heard()

    DBus.SignalWatcher {
        busType: root.busType
        service: root.service
        path: Logic.ROOT
        iface: "org.freedesktop.DBus.ObjectManager"

        function dbusInterfacesAdded(path: var, interfaces: var) {
            root.heard();
        }
        function dbusInterfacesRemoved(path: var, interfaces: var) {
            root.heard();
        }
    }

    Instantiator {
        model: root.paths
        delegate: DBus.SignalWatcher {
            required property string modelData

            busType: root.busType
            service: root.service
            path: modelData
            iface: "org.freedesktop.DBus.Properties"

            function dbusPropertiesChanged(iface: var, changed: var, invalidated: var) {
                root.heard();
            }
        }
    }
}
