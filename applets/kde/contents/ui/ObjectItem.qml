import QtQuick
import QtQuick.Controls as QQC2
import QtQuick.Layouts
import org.kde.kirigami as Kirigami
import org.kde.plasma.components as PlasmaComponents
import org.kde.plasma.extras as PlasmaExtras

import "../code/logic.js" as Logic
import "../code/words.js" as Words

// A row: a machine with its shares below it, or a share of no machine.
PlasmaExtras.ExpandableListItem {
    id: root

    property Client client

    // A row may outlive its object for a moment.
    readonly property var item: client.items[model.key] ?? {kind: "share", scope: "user", name: "", state: "stopped", shares: []}
    readonly property bool isMachine: item.kind === "machine"
    readonly property bool isBroken: Logic.isBroken(item)
    readonly property bool isIdle: ["stopped", "failed"].includes(item.state)
    readonly property var shares: isMachine ? client.shares(item) : []

    // What one wants mostly, as the state is.
    readonly property string mainVerb: {
        if (item.suspended && isIdle) {
            return "thaw";
        }
        if (isIdle) {
            return "start";
        }
        if (item.state === "paused") {
            return "resume";
        }
        return isMachine ? "shutdown" : "remove";
    }

    icon: isMachine ? "computer" : "folder-network"
    iconEmblem: isBroken ? (item.state === "failed" ? "emblem-error" : "emblem-warning") : (item.state === "paused" ? "emblem-pause" : "")
    title: item.name
    subtitle: Words.subtitle(item, client.bus === "both")
    subtitleCanWrap: isBroken
    subtitleColor: isBroken ? Kirigami.Theme.negativeTextColor : Kirigami.Theme.textColor
    isBusy: client.busy[item.key] > 0 || ["starting", "stopping"].includes(item.state)

    component VerbAction: QQC2.Action {
        required property string verb
        readonly property string spoken: Words.action(verb, root.title).spoken

        text: Words.action(verb, root.title).label
        icon.name: {
            switch (verb) {
            case "shutdown":
                return "system-shutdown";
            case "restart":
                return "view-refresh";
            case "pause":
                return "media-playback-pause";
            case "kill":
                return "process-stop";
            case "remove":
                return "network-disconnect";
            case "console":
                return "utilities-terminal";
            case "log":
                return "view-list-text";
            default:
                return "media-playback-start";
            }
        }
        onTriggered: root.client.act(root.item, verb)
    }

    defaultActionButtonAction: VerbAction {
        verb: root.mainVerb
        enabled: !root.isBusy
    }

    contextualActions: [
        VerbAction {
            verb: "restart"
            enabled: root.isMachine && root.item.degraded && root.item.state === "running"
        },
        VerbAction {
            verb: "pause"
            enabled: root.isMachine && root.item.state === "running"
        },
        VerbAction {
            verb: "console"
            enabled: root.isMachine && !root.isIdle
        },
        VerbAction {
            verb: "kill"
            enabled: root.isMachine && !root.isIdle
        },
        VerbAction {
            verb: "remove"
            enabled: !root.isMachine && root.isIdle
        },
        VerbAction {
            verb: "log"
        }
    ]

    customExpandedViewContent: shares.length > 0 ? sharesView : null

    // Plasma names buttons by their text alone, which does not tell to which row they belong.
    function nameButtons(parent: Item) {
        for (const child of parent.children) {
            if (child instanceof PlasmaComponents.ToolButton) {
                const action = child.action ?? child["modelData"];
                child.Accessible.name = action ? action.spoken : child.text + " “" + title + "”";
            }
            nameButtons(child);
        }
    }

    Timer {
        id: naming
        interval: 0
        onTriggered: root.nameButtons(root)
    }

    Component.onCompleted: {
        // Before Plasma 6.6 the row's number comes from the view, later it is a property.
        if ("index" in root) {
            root["index"] = Qt.binding(() => model.index);
        }
        naming.start();
    }
    onItemChanged: naming.start()
    onExpandedChanged: naming.start()
    // New buttons make it higher.
    onHeightChanged: naming.start()

    Component {
        id: sharesView

        ColumnLayout {
            width: root.width
            spacing: Kirigami.Units.smallSpacing

            Repeater {
                model: root.shares

                RowLayout {
                    id: row
                    required property var modelData
                    readonly property bool isBroken: Logic.isBroken(modelData) && !root.isIdle

                    Layout.fillWidth: true
                    Layout.leftMargin: Kirigami.Units.gridUnit
                    Layout.rightMargin: Kirigami.Units.gridUnit
                    spacing: Kirigami.Units.smallSpacing

                    Accessible.role: Accessible.ListItem
                    Accessible.name: label.text + ", " + state.text

                    Kirigami.Icon {
                        source: "folder-network"
                        implicitWidth: Kirigami.Units.iconSizes.small
                        implicitHeight: Kirigami.Units.iconSizes.small
                    }
                    PlasmaComponents.Label {
                        id: label
                        Layout.fillWidth: true
                        elide: Text.ElideMiddle
                        font: Kirigami.Theme.smallFont
                        text: row.modelData.source || row.modelData.tag
                        textFormat: Text.PlainText
                    }
                    PlasmaComponents.Label {
                        id: state
                        color: row.isBroken ? Kirigami.Theme.negativeTextColor : Kirigami.Theme.textColor
                        font: Kirigami.Theme.smallFont
                        text: Words.state(row.modelData)
                        textFormat: Text.PlainText
                    }
                }
            }
        }
    }
}
