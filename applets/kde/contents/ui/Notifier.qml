import QtCore
import QtQuick
import org.kde.notification

import "../code/logic.js" as Logic
import "../code/words.js" as Words

/*
 * Tells of failures, by KNotification, which hears when an action is clicked: Plasma's D-Bus module has no signals before 6.4.
 * An applet that was installed alone has no file in which its events are described; it uses Plasma's own event.
 */
Item {
    id: root

    required property Client client
    // What is shown, by key of the object: one notification each, a new one replaces the old.
    property var shown: ({})

    readonly property bool isDescribed: String(StandardPaths.locate(StandardPaths.GenericDataLocation, "knotifications6/vfsd.notifyrc")) !== ""

    function tell(what: string, item: var) {
        if (what === "healed") {
            show("recovery", item.key, Words.happened(what, item), "", "dialog-positive", []);
            return;
        }
        const help = item.kind === "machine" ? [what === "failed" ? "start" : "restart"] : (item.state === "failed" ? ["start"] : []);
        show("failure", item.key, Words.happened(what, item), item.reason, "dialog-error", [...help, "log"]);
    }

    function tellError(title: string, message: string, item: var) {
        show("error", item ? item.key : title, title, message, "dialog-error", item ? ["log"] : []);
    }

    // Take away what is not so any more.
    function withdraw() {
        for (const key of Object.keys(shown)) {
            const item = client.items[key];
            if (shown[key].event === "failure" && (!item || !Logic.isBroken(item))) {
                close(key);
            }
        }
    }

    function close(key: string) {
        const notification = shown[key];
        if (notification) {
            delete shown[key];
            notification.close();
            notification.destroy();
        }
    }

    function show(event: string, key: string, title: string, text: string, icon: string, verbs: var) {
        close(key);
        const notification = notificationComponent.createObject(root, {
            event: event,
            title: title,
            text: Logic.escaped(text),
            iconName: icon,
            urgency: event === "failure" ? Notification.HighUrgency : Notification.NormalUrgency
        });
        notification.actions = verbs.map(verb => {
            const action = actionComponent.createObject(notification, {label: Words.action(verb, "").label});
            action.activated.connect(() => client.act(client.items[key], verb));
            return action;
        });
        shown[key] = notification;
        notification.sendEvent();
    }

    Component {
        id: notificationComponent
        Notification {
            property string event: ""
            componentName: root.isDescribed ? "vfsd" : "plasma_workspace"
            eventId: root.isDescribed ? event : "notification"
        }
    }

    Component {
        id: actionComponent
        NotificationAction {}
    }

    Connections {
        target: root.client
        function onItemsChanged() {
            root.withdraw();
        }
    }
}
