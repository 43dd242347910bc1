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

    FolderListModel {
        id: files
        folder: root.runtime + "/systemd/transient"
        nameFilters: ["vfsd-*"]
        onRowsInserted: root.heard()
        onRowsRemoved: root.heard()
        onModelReset: root.heard()
        // As many files as before, but others; or files of others, which nobody can tell apart from that.
        onDataChanged: root.heard()
    }
}
