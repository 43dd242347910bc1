import QtQuick
import QtQuick.Controls as QQC2
import QtQuick.Layouts
import org.kde.kirigami as Kirigami
import org.kde.plasma.components as PlasmaComponents
import org.kde.plasma.extras as PlasmaExtras

PlasmaExtras.Representation {
    id: root

    required property Client client
    // Whether the system tray draws a title above this.
    property bool isInTray: false

    signal folderWanted()

    implicitWidth: Kirigami.Units.gridUnit * 24
    implicitHeight: Kirigami.Units.gridUnit * 24
    Layout.minimumWidth: Kirigami.Units.gridUnit * 15
    Layout.minimumHeight: Kirigami.Units.gridUnit * 12

    // The shell's panels do so for what is in them, other places do not.
    LayoutMirroring.enabled: Application.layoutDirection === Qt.RightToLeft
    LayoutMirroring.childrenInherit: true

    focus: true
    collapseMarginsHint: true

    Keys.onDownPressed: event => {
        if (list.count > 0 && (list.currentIndex < 0 || shareButton.activeFocus)) {
            list.currentIndex = Math.max(list.currentIndex, 0);
            list.currentItem.forceActiveFocus(Qt.TabFocusReason);
        } else {
            event.accepted = false;
        }
    }

    // In the tray there is a title already, with Plasmoid.contextualActions in it.
    header: PlasmaExtras.PlasmoidHeading {
        visible: !root.isInTray
        contentItem: RowLayout {
            spacing: Kirigami.Units.smallSpacing

            Kirigami.Heading {
                Layout.fillWidth: true
                Layout.leftMargin: Kirigami.Units.smallSpacing
                level: 1
                text: root.title
            }
            PlasmaComponents.ToolButton {
                id: shareButton
                focus: true
                icon.name: "document-share"
                text: i18n("Share a Folder…")
                visible: root.client.bus !== "system"
                onClicked: root.folderWanted()
            }
        }
    }

    PlasmaComponents.ScrollView {
        id: scrollView
        anchors.fill: parent

        // Otherwise one appears now and then: QTBUG-83890.
        PlasmaComponents.ScrollBar.horizontal.policy: PlasmaComponents.ScrollBar.AlwaysOff
        contentWidth: availableWidth - list.leftMargin - list.rightMargin

        contentItem: ListView {
            id: list

            Accessible.name: i18n("Machines and Shared Folders")
            model: root.client.rows
            clip: true
            currentIndex: -1
            boundsBehavior: Flickable.StopAtBounds
            topMargin: Kirigami.Units.smallSpacing * 2
            bottomMargin: Kirigami.Units.smallSpacing * 2
            leftMargin: Kirigami.Units.smallSpacing * 2
            rightMargin: Kirigami.Units.smallSpacing * 2
            spacing: Kirigami.Units.smallSpacing
            highlight: PlasmaExtras.Highlight {}
            highlightMoveDuration: Kirigami.Units.shortDuration
            highlightResizeDuration: Kirigami.Units.shortDuration

            section.property: "section"
            section.delegate: Kirigami.ListSectionHeader {
                required property string section

                width: list.width - list.leftMargin - list.rightMargin
                text: section === "machine" ? i18n("Machines") : i18n("Shared folders")
            }

            delegate: ObjectItem {
                client: root.client
            }

            Loader {
                anchors.centerIn: parent
                width: parent.width - Kirigami.Units.gridUnit * 4
                active: list.count === 0 && (root.client.isRead || !root.client.isThere)
                sourceComponent: root.client.isThere ? nothingThere : notRunning
            }
        }
    }

    Component {
        id: nothingThere
        PlasmaExtras.PlaceholderMessage {
            iconName: "computer-symbolic"
            text: i18n("No machines")
            explanation: i18n("“vfsctl run --builtin” starts one to try.")
        }
    }

    Component {
        id: notRunning
        PlasmaExtras.PlaceholderMessage {
            iconName: "offline"
            text: i18n("vfsd is not running")
            helpfulAction: QQC2.Action {
                icon.name: "media-playback-start"
                text: i18n("Start vfsd")
                onTriggered: root.client.startService()
            }
        }
    }
}
