/**
 * vfsd in GNOME Shell: the parts put together.
 */

import Gio from 'gi://Gio';

import {Extension} from 'resource:///org/gnome/shell/extensions/extension.js';
import * as Main from 'resource:///org/gnome/shell/ui/main.js';

import {perform, textsOf} from './actions.js';
import {Client} from './client.js';
import {Indicator} from './menu.js';
import {Notifier} from './notifier.js';
import {FolderChooser} from './portal.js';
import {openTerminal} from './terminal.js';
import {format, gettext as _} from './texts.js';

const BUSES = {user: ['user'], system: ['system'], both: ['user', 'system']};
/** Actions that open a window. */
const WINDOWS = ['open-console', 'show-log'];

/** The extension. */
export default class VfsdExtension extends Extension {
    /** Shows itself and follows vfsd. */
    enable() {
        const icons = {
            normal: this._icon('org.vfsd1.vfsd-symbolic'),
            attention: this._icon('org.vfsd1.vfsd-attention-symbolic'),
        };
        this._settings = this.getSettings();
        this._chooser = new FolderChooser();
        this._notifier = new Notifier(icons.normal, (object, action) => this._act(object, action));
        this._client = new Client({
            changed: () => this._indicator.update(this._settings.get_string('panel-icon')),
            happened: (object, what) => this._happened(object, what),
            recovered: object => this._notifier.withdraw(object),
        });
        this._indicator = new Indicator(this._client, icons, {
            act: (object, action) => this._act(object, action),
            shareFolder: () => this._shareFolder(),
            startService: () => this._try(null, _('Could not start vfsd'), () => this._client.startService()),
            openSettings: () => this._openSettings(),
        });
        Main.panel.statusArea.quickSettings.addExternalIndicator(this._indicator);
        this._settings.connectObject(
            'changed::bus', () => this._look(),
            'changed::panel-icon', () => this._indicator.update(this._settings.get_string('panel-icon')), this);
        this._look();
    }

    /** Leaves nothing behind. */
    disable() {
        this._settings.disconnectObject(this);
        this._settings = null;
        this._client.destroy();
        this._client = null;
        this._chooser.cancel();
        this._chooser = null;
        this._notifier.destroy();
        this._notifier = null;
        this._indicator.destroy();
        this._indicator = null;
    }

    _icon(name) {
        return Gio.icon_new_for_string(`${this.path}/icons/${name}.svg`);
    }

    _look() {
        this._client.look(BUSES[this._settings.get_string('bus')]);
    }

    _happened(object, what) {
        const key = what === 'healed' ? 'notify-recoveries' : 'notify-failures';
        if (this._settings.get_boolean(key))
            this._notifier.tell(object, what);
        else
            this._notifier.withdraw(object);
    }

    _act(object, action) {
        if (WINDOWS.includes(action))
            Main.panel.closeQuickSettings();
        const title = format(textsOf(action).failure, object.name);
        this._try(object, title, () => perform(this._client, openTerminal, object, action));
    }

    _shareFolder() {
        Main.panel.closeQuickSettings();
        this._try(null, _('Could not share the folder'), async () => {
            const folder = await this._chooser.choose();
            if (folder)
                await this._client?.shareFolder(folder);
        });
    }

    _openSettings() {
        Main.panel.closeQuickSettings();
        this.openPreferences();
    }

    async _try(object, title, body) {
        try {
            await body();
        } catch (error) {
            // null if we were disabled meanwhile
            this._notifier?.tellError(object, title, error);
        }
    }
}
