/**
 * Notifications: at most one for each machine or share.
 */

import * as Main from 'resource:///org/gnome/shell/ui/main.js';
import * as MessageTray from 'resource:///org/gnome/shell/ui/messageTray.js';

import {errorText, textsOf} from './actions.js';
import {stateOf} from './states.js';
import {format, gettext as _} from './texts.js';

/** Tells the user, and offers what helps. */
export class Notifier {
    /**
     * @param {Gio.Icon} icon - the icon of the source
     * @param {(object: object, action: string) => void} act - does what the user chooses
     */
    constructor(icon, act) {
        this._icon = icon;
        this._act = act;
        this._source = null;
        this._shown = new Map();
    }

    /** Takes all notifications away. */
    destroy() {
        this._source?.destroy(MessageTray.NotificationDestroyedReason.SOURCE_CLOSED);
        this._shown.clear();
    }

    /**
     * A machine or share fails, or works again.
     *
     * @param {object} object - it
     * @param {string} what - see states.happened
     */
    tell(object, what) {
        const {Reason: reason} = object.properties;
        const titles = {
            failed: _('“%s” failed'),
            unavailable: _('“%s” is unavailable'),
            degraded: _('“%s” lost a share'),
            healed: _('“%s” works again'),
        };
        const actions = what === 'healed' ? [] : [...helping(object), 'show-log'];
        this._show(object.key, format(titles[what], object.name), reason, what === 'healed', actions, object);
    }

    /**
     * What the user wanted did not work.
     *
     * @param {?object} object - the machine or share that it was about
     * @param {string} title - what did not work
     * @param {Error} error - why
     */
    tellError(object, title, error) {
        this._show(object?.key ?? title, title, errorText(error), false, object ? ['show-log'] : [], object);
    }

    /**
     * What was told of a machine or share is not so any more.
     *
     * @param {object} object - it
     */
    withdraw(object) {
        this._shown.get(object.key)?.destroy(MessageTray.NotificationDestroyedReason.EXPIRED);
    }

    _show(key, title, body, isGood, actions, object) {
        this._shown.get(key)?.destroy(MessageTray.NotificationDestroyedReason.REPLACED);
        const source = this._getSource();
        const notification = new MessageTray.Notification({
            source,
            title,
            body: body ?? '',
            gicon: this._icon,
            urgency: isGood ? MessageTray.Urgency.NORMAL : MessageTray.Urgency.HIGH,
        });
        for (const action of actions)
            notification.addAction(textsOf(action).label, () => this._act(object, action));
        notification.connect('destroy', () => {
            if (this._shown.get(key) === notification)
                this._shown.delete(key);
        });
        this._shown.set(key, notification);
        source.addNotification(notification);
    }

    _getSource() {
        if (!this._source) {
            this._source = new MessageTray.Source({title: 'vfsd', icon: this._icon});
            this._source.connect('destroy', () => (this._source = null));
            Main.messageTray.add(this._source);
        }
        return this._source;
    }
}

/**
 * @param {object} object - a machine or share that fails
 * @returns {string[]} the actions that may help
 */
function helping(object) {
    if (object.kind === 'machine')
        return [stateOf(object) === 'failed' ? 'start' : 'restart'];
    return stateOf(object) === 'failed' ? ['start'] : [];
}
