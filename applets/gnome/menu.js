/**
 * The toggle in Quick Settings, its menu, and the icon in the panel.
 */

import GObject from 'gi://GObject';
import Pango from 'gi://Pango';
import St from 'gi://St';

import {ensureActorVisibleInScrollView} from 'resource:///org/gnome/shell/misc/animationUtils.js';
import * as Main from 'resource:///org/gnome/shell/ui/main.js';
import * as PopupMenu from 'resource:///org/gnome/shell/ui/popupMenu.js';
import {QuickMenuToggle, SystemIndicator} from 'resource:///org/gnome/shell/ui/quickSettings.js';

import {ObjectRow} from './rows.js';
import {isActive, needsAttention} from './states.js';
import {format, gettext as _, ngettext} from './texts.js';

/** How much of the screen's height the list may take before it scrolls, whatever else is shown. */
const LEAST_HEIGHT = 0.25;
const MOST_HEIGHT = 0.6;
/** Pixels between the panel, Quick Settings, what is in them, and the screen's lower edge. */
const GAPS = 42;

/** Machines and shares, of which there may be more than fit on the screen. */
class List extends PopupMenu.PopupMenuSection {
    constructor() {
        super();
        this.actor = new St.ScrollView({
            style_class: 'vfsd-list',
            hscrollbar_policy: St.PolicyType.NEVER,
            vscrollbar_policy: St.PolicyType.AUTOMATIC,
            overlay_scrollbars: true,
            child: this.box,
        });
        this.actor._delegate = this;
        this._rows = new Map();
        this._opened = null;
        this.actor.vadjustment.connect('changed', () => this._reveal());
        this.actor.connect('scroll-event', () => (this._opened = null));
        this.connect('active-changed', (_menu, item) => item && ensureActorVisibleInScrollView(this.actor, item));
    }

    /**
     * Has the list take no more than its part of the screen.
     *
     * @param {number} others - the height of all else that is shown with it
     */
    limitHeight(others) {
        const {height} = Main.layoutManager.getWorkAreaForMonitor(Main.layoutManager.primaryIndex);
        const {scaleFactor} = St.ThemeContext.get_for_stage(global.stage);
        const room = Math.clamp(height - others - GAPS * scaleFactor, height * LEAST_HEIGHT, height * MOST_HEIGHT);
        this.actor.style = `max-height: ${Math.round(room / scaleFactor)}px;`;
    }

    /**
     * Shows what is there now, and leaves as it is what stays.
     *
     * @param {object[]} machines - all machines, in their order
     * @param {object[]} shares - the shares of no machine, in their order
     * @param {(object: object) => ObjectRow} makeRow - makes a row
     */
    update(machines, shares, makeRow) {
        const rows = new Map();
        for (const object of [...machines, ...shares]) {
            const row = this._rows.get(object.key) ?? this._add(makeRow(object));
            rows.set(object.key, row);
            row.update(object);
        }
        for (const [key, row] of this._rows) {
            if (!rows.has(key))
                row.destroy();
        }
        this._rows = rows;
        this._order([...rows.values()], machines.length, shares.length);
        this.actor.visible = rows.size > 0;
    }

    _add(row) {
        this.addMenuItem(row);
        row.menu.connect('open-state-changed', (_menu, isOpen) => (this._opened = isOpen ? row : null));
        return row;
    }

    /** Scrolls to what a row opens into, as it grows, as long as the user does not scroll. */
    _reveal() {
        if (!this._opened?.mapped)
            return;
        const {vadjustment} = this.actor;
        const top = this._opened.get_allocation_box().y1;
        const bottom = this._opened.menu.actor.get_allocation_box().y2;
        vadjustment.value = Math.min(top, Math.max(vadjustment.value, bottom - vadjustment.pageSize));
    }

    _order(rows, machines, shares) {
        this._heading ??= this._addHeading();
        this._heading.visible = shares > 0;
        const order = [...rows.slice(0, machines), this._heading, ...rows.slice(machines)];
        const actors = order.flatMap(item => item.menu ? [item, item.menu.actor] : [item]);
        actors.forEach((actor, index) => {
            if (this.box.get_child_at_index(index) !== actor)
                this.box.set_child_at_index(actor, index);
        });
    }

    _addHeading() {
        const heading = new PopupMenu.PopupSeparatorMenuItem(_('Shared folders'));
        this.addMenuItem(heading);
        return heading;
    }
}

/** What is shown when there is nothing to show. */
const Placeholder = GObject.registerClass(
class VfsdPlaceholder extends PopupMenu.PopupMenuItem {
    constructor() {
        super('', {reactive: false, can_focus: false, style_class: 'vfsd-placeholder'});
        this.label.x_expand = true;
        this.label.clutter_text.set({ellipsize: Pango.EllipsizeMode.NONE, line_wrap: true});
    }
});

/** The toggle: shown as on while something runs. */
const Toggle = GObject.registerClass(
class VfsdToggle extends QuickMenuToggle {
    constructor(client, icons, commands) {
        super({title: _('Machines'), gicon: icons.normal});
        this.add_style_class_name('vfsd-toggle');
        // GNOME 49 has a property for this, and binds it to the same
        this._menuButton.accessible_name = _('Open the menu of machines');
        this._client = client;
        this._icons = icons;
        this._commands = commands;
        this.menu.setHeader(icons.normal, _('Machines and Shared Folders'));
        this._list = new List();
        this._placeholder = new Placeholder();
        this.menu.addMenuItem(this._list);
        this.menu.addMenuItem(this._placeholder);
        this.menu.addMenuItem(new PopupMenu.PopupSeparatorMenuItem());
        this._start = this.menu.addAction(_('Start vfsd'), () => commands.startService());
        this._share = this.menu.addAction(_('Share a Folder…'), () => commands.shareFolder());
        this._settings = this.menu.addAction(_('Settings'), () => commands.openSettings());
        this.connect('clicked', () => this.menu.open());
        // before this menu is shown in it
        Main.panel.statusArea.quickSettings.menu.connectObject('open-state-changed',
            (_menu, isOpen) => isOpen && this._limitHeight(), this);
    }

    /** Shows what is so now. */
    update() {
        const {machines, shares, running, buses, status} = this._client;
        this._list.update(machines, shares, object =>
            new ObjectRow(object, machine => this._client.sharesOf(machine), this._commands.act));
        this._placeholder.visible = machines.length + shares.length === 0;
        this._placeholder.label.text = running.length
            ? `${_('No machines')}\n${_('“vfsctl run --builtin” starts one to try.')}`
            : _('vfsd is not running');
        this._start.visible = running.length < buses.length;
        this.checked = status !== 'passive';
        this.gicon = status === 'attention' ? this._icons.attention : this._icons.normal;
        this.subtitle = this._summary(machines, shares, running);
        this.menu.setHeader(this.gicon, _('Machines and Shared Folders'));
    }

    destroy() {
        this._list.destroy();
        this._list = null;
        this.menu.destroy();
        super.destroy();
    }

    _limitHeight() {
        const [, without] = Main.panel.statusArea.quickSettings.menu.box.get_preferred_height(-1);
        const [, all] = this.menu.box.get_preferred_height(-1);
        const [, list] = this._list.actor.get_preferred_height(-1);
        this._list.limitHeight(without + all - list);
    }

    _summary(machines, shares, running) {
        if (!running.length)
            return _('Not running');
        const broken = [...machines, ...shares].filter(needsAttention).length;
        if (broken)
            return format(ngettext('%d problem', '%d problems', broken), broken);
        const active = machines.filter(isActive).length;
        if (active)
            return format(ngettext('%d running', '%d running', active), active);
        const served = shares.filter(isActive).length;
        return served ? format(ngettext('%d shared folder', '%d shared folders', served), served) : null;
    }
});

/** The icon in the panel, with the toggle that belongs to it. */
export const Indicator = GObject.registerClass(
class VfsdIndicator extends SystemIndicator {
    /**
     * @param {object} client - the client
     * @param {{normal: Gio.Icon, attention: Gio.Icon}} icons - the icons
     * @param {object} commands - {act(object, action), shareFolder(), startService(), openSettings()}
     */
    constructor(client, icons, commands) {
        super();
        this._client = client;
        this._icons = icons;
        this._icon = this._addIndicator();
        this._toggle = new Toggle(client, icons, commands);
        this.quickSettingsItems.push(this._toggle);
    }

    /**
     * Shows what is so now.
     *
     * @param {string} when - when the icon is shown: 'always', 'active' or 'attention'
     */
    update(when) {
        const {status} = this._client;
        this._toggle.update();
        this._icon.gicon = status === 'attention' ? this._icons.attention : this._icons.normal;
        this._icon.accessible_name = this._toggle.subtitle ?? this._toggle.title;
        this._icon.visible = when === 'always' || status === 'attention' || when === 'active' && status === 'active';
    }

    destroy() {
        this.quickSettingsItems.forEach(item => item.destroy());
        super.destroy();
    }
});
