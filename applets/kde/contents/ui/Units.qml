import QtCore
import QtQuick
import Qt.labs.folderlistmodel

// Hears that one of vfsd's transient units came or went, by the folder in which systemd keeps their files. vfsd's own folders
// are closed to others than their owner; this one is not.
Item {
    id: root

    property string scope: "user"

    signal heard()

    readonly property string runtime: scope === "system" ? "file:///run" : String(StandardPaths.writableLocation(StandardPaths.RuntimeLocation))

    function changed() {
        heard();
        later.restart();
    }

    // The model may miss the last of several changes that follow on each other.
    Timer {
        id: later
        interval: 2000
        onTriggered: root.heard()
    }

    FolderListModel {
        id: files
        folder: root.runtime + "/systemd/transient"
        nameFilters: ["vfsd-*"]
        onRowsInserted: root.changed()
        onRowsRemoved: root.changed()
        onModelReset: root.changed()
        // As many files as before, but others; or files of others, which nobody can tell apart from that.
        onDataChanged: root.changed()
    }
}
