/**
 * Asking the user for a folder, through the desktop's portal.
 */

import Gio from 'gi://Gio';
import GLib from 'gi://GLib';

import {gettext as _} from './texts.js';

Gio._promisify(Gio, 'bus_get');
Gio._promisify(Gio.DBusConnection.prototype, 'call');

const NAME = 'org.freedesktop.portal.Desktop';
const REQUEST = 'org.freedesktop.portal.Request';

/** One dialog at a time, in which the user chooses a folder. */
export class FolderChooser {
    constructor() {
        this._requests = 0;
        this._finish = null;
    }

    /**
     * Lets the user choose a folder; a dialog that is open already is given up.
     *
     * @returns {Promise<?string>} its absolute path, or null if the user chose none
     */
    async choose() {
        this.cancel();
        const connection = await Gio.bus_get(Gio.BusType.SESSION, null);
        const token = `vfsd${GLib.random_int()}_${++this._requests}`;
        const sender = connection.get_unique_name().slice(1).replaceAll('.', '_');
        const path = `/org/freedesktop/portal/desktop/request/${sender}/${token}`;
        const chosen = this._answer(connection, path);
        const parameters = new GLib.Variant('(ssa{sv})', ['', _('Share a Folder'), {
            handle_token: GLib.Variant.new_string(token),
            directory: GLib.Variant.new_boolean(true),
            accept_label: GLib.Variant.new_string(_('Share')),
        }]);
        try {
            await connection.call(NAME, '/org/freedesktop/portal/desktop', 'org.freedesktop.portal.FileChooser',
                'OpenFile', parameters, null, Gio.DBusCallFlags.NONE, -1, null);
        } catch (error) {
            this.cancel();
            throw error;
        }
        return chosen;
    }

    /** Expects no answer any more: none is chosen then. */
    cancel() {
        this._finish?.(null);
    }

    /**
     * The portal's answer, which comes as a signal of a request.
     *
     * @param {Gio.DBusConnection} connection - the session bus
     * @param {string} path - the request's path
     * @returns {Promise<?string>} the folder, or null
     */
    _answer(connection, path) {
        return new Promise(resolve => {
            let seen = false;
            const subscription = connection.signal_subscribe(NAME, REQUEST, 'Response', path, null,
                Gio.DBusSignalFlags.NONE, (_connection, _sender, _path, _iface, _member, body) => {
                    const [code, results] = body.recursiveUnpack();
                    const [uri] = results.uris ?? [];
                    this._finish(code === 0 && uri ? Gio.File.new_for_uri(uri).get_path() : null);
                });
            // a portal that ends with the dialog open never answers
            const watch = Gio.bus_watch_name_on_connection(connection, NAME, Gio.BusNameWatcherFlags.NONE,
                () => (seen = true), () => seen && this.cancel());
            this._finish = folder => {
                this._finish = null;
                connection.signal_unsubscribe(subscription);
                Gio.bus_unwatch_name(watch);
                resolve(folder);
            };
        });
    }
}
