import QtQuick
import QtQuick.Dialogs
import org.kde.kirigami as Kirigami
import org.kde.plasma.core as PlasmaCore
import org.kde.plasma.plasmoid

import "../code/logic.js" as Logic
import "../code/words.js" as Words

PlasmoidItem {
    id: root

    readonly property string iconName: vfsd.status === "attention" ? "org.vfsd1.vfsd-attention-symbolic" : "org.vfsd1.vfsd-symbolic"

    switchWidth: Kirigami.Units.gridUnit * 15
    switchHeight: Kirigami.Units.gridUnit * 10

    // The icons of an applet that was installed alone are in its package, not in the theme.
    Plasmoid.icon: themed.valid ? iconName : String(Qt.resolvedUrl("../icons/" + iconName + ".svg"))
    Plasmoid.status: {
        switch (vfsd.status) {
        case "attention":
            return PlasmaCore.Types.NeedsAttentionStatus;
        case "active":
            return PlasmaCore.Types.ActiveStatus;
        default:
            return PlasmaCore.Types.PassiveStatus;
        }
    }
    Plasmoid.busy: Object.values(vfsd.busy).some(count => count > 0)
    toolTipMainText: Plasmoid.title
    toolTipSubText: vfsd.isThere ? Words.summary(Object.values(vfsd.items)) : i18n("vfsd is not running")

    Plasmoid.contextualActions: [
        PlasmaCore.Action {
            text: i18n("Share a Folder…")
            icon.name: "document-share"
            // Only on the user's bus: what the system's virtiofsd serves, it reads as root.
            visible: vfsd.bus !== "system"
            onTriggered: folderDialog.open()
        }
    ]

    fullRepresentation: FullRepresentation {
        client: vfsd
        title: Plasmoid.title
        isInTray: Plasmoid.containmentDisplayHints & PlasmaCore.Types.ContainmentDrawsPlasmoidHeading
        onFolderWanted: folderDialog.open()
    }

    Kirigami.Icon {
        id: themed
        source: root.iconName
        visible: false
    }

    Client {
        id: vfsd
        bus: Plasmoid.configuration.bus
        shown: root.expanded || Plasmoid.formFactor === PlasmaCore.Types.Planar
        onHappened: (what, item) => {
            if (what === "healed" ? Plasmoid.configuration.notifyRecoveries : Plasmoid.configuration.notifyFailures) {
                notifier.tell(what, item);
            }
        }
        onFailed: (title, message, item) => notifier.tellError(title, message, item)
    }

    Notifier {
        id: notifier
        client: vfsd
    }

    FolderDialog {
        id: folderDialog
        title: i18n("Share a Folder")
        onAccepted: vfsd.shareFolder(Logic.localPath(selectedFolder))
    }
}
