import QtQuick
import QtQuick.Controls as QQC2
import org.kde.kcmutils as KCM
import org.kde.kirigami as Kirigami

KCM.SimpleKCM {
    id: root

    property string cfg_bus
    property bool cfg_notifyFailures
    property bool cfg_notifyRecoveries
    property string cfg_busDefault
    property bool cfg_notifyFailuresDefault
    property bool cfg_notifyRecoveriesDefault

    Kirigami.FormLayout {
        QQC2.RadioButton {
            Kirigami.FormData.label: i18n("Machines and folders") + ":"
            text: i18n("Mine")
            checked: root.cfg_bus === "user"
            onToggled: root.cfg_bus = "user"
        }
        QQC2.RadioButton {
            text: i18n("The system’s")
            checked: root.cfg_bus === "system"
            onToggled: root.cfg_bus = "system"
        }
        QQC2.RadioButton {
            text: i18n("Both")
            checked: root.cfg_bus === "both"
            onToggled: root.cfg_bus = "both"
        }

        Item {
            Kirigami.FormData.isSection: true
        }

        QQC2.CheckBox {
            Kirigami.FormData.label: i18n("Notifications") + ":"
            text: i18n("When a machine or shared folder fails")
            checked: root.cfg_notifyFailures
            onToggled: root.cfg_notifyFailures = checked
        }
        QQC2.CheckBox {
            text: i18n("When it works again")
            checked: root.cfg_notifyRecoveries
            onToggled: root.cfg_notifyRecoveries = checked
        }
    }
}
