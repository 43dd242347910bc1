/**
 * The preferences window; a process of its own shows it.
 */

import Adw from 'gi://Adw';
import Gio from 'gi://Gio';
import Gtk from 'gi://Gtk';

import {ExtensionPreferences} from 'resource:///org/gnome/Shell/Extensions/js/extensions/prefs.js';

import {gettext as _} from './texts.js';

/** Of the window: what the preferences take, and some room for longer words. */
const WIDTH = 640;
const HEIGHT = 440;

/** The preferences. */
export default class VfsdPreferences extends ExtensionPreferences {
    /**
     * @param {Adw.PreferencesWindow} window - the window, still empty
     */
    async fillPreferencesWindow(window) {
        const settings = this.getSettings();
        const page = new Adw.PreferencesPage({title: 'vfsd', icon_name: 'computer-symbolic'});
        page.add(this._choices(settings));
        page.add(this._notifications(settings));
        window.add(page);
        window.set_default_size(WIDTH, HEIGHT);
    }

    _choices(settings) {
        const group = new Adw.PreferencesGroup();
        group.add(choice(settings, 'bus', _('Machines and folders'), {
            user: _('Mine'),
            system: _('The system’s'),
            both: _('Both'),
        }));
        group.add(choice(settings, 'panel-icon', _('Icon in the panel'), {
            always: _('Always'),
            active: _('While something runs'),
            attention: _('Only on problems'),
        }));
        return group;
    }

    _notifications(settings) {
        const group = new Adw.PreferencesGroup({title: _('Notifications')});
        for (const [key, title, subtitle] of [
            ['notify-failures', _('Failures'), _('When a machine or shared folder fails')],
            ['notify-recoveries', _('Recoveries'), _('When it works again')],
        ]) {
            const row = new Adw.SwitchRow({title, subtitle});
            settings.bind(key, row, 'active', Gio.SettingsBindFlags.DEFAULT);
            group.add(row);
        }
        return group;
    }
}

/**
 * A row with a few values to choose from.
 *
 * @param {Gio.Settings} settings - the settings
 * @param {string} key - the key
 * @param {string} title - the row's title
 * @param {{[value: string]: string}} names - what each value is called
 * @returns {Adw.ComboRow}
 */
function choice(settings, key, title, names) {
    const values = Object.keys(names);
    const row = new Adw.ComboRow({title, model: Gtk.StringList.new(Object.values(names))});
    row.selected = values.indexOf(settings.get_string(key));
    row.connect('notify::selected', () => settings.set_string(key, values[row.selected]));
    settings.connect(`changed::${key}`, () => (row.selected = values.indexOf(settings.get_string(key))));
    return row;
}
