/**
 * The rows of the menu: a machine or share, which opens into what belongs to it and what one can do.
 */

import Clutter from 'gi://Clutter';
import GLib from 'gi://GLib';
import GObject from 'gi://GObject';
import Meta from 'gi://Meta';
import Pango from 'gi://Pango';
import St from 'gi://St';

import * as PopupMenu from 'resource:///org/gnome/shell/ui/popupMenu.js';

import {actionsFor, textsOf} from './actions.js';
import {detailText, needsAttention, stateText} from './states.js';
import {format} from './texts.js';

const ICONS = {machine: 'computer-symbolic', share: 'folder-symbolic'};
const WARNING = 'dialog-warning-symbolic';
/** The opacity of what matters less, as of a subtitle in the shell's own menus. */
const DIMMED = 178;

/** A text in as many lines as it takes. */
const WrappedLabel = GObject.registerClass(
class VfsdWrappedLabel extends St.Label {
    constructor(params) {
        super(params);
        this._width = -1;
        this._later = 0;
        this.connect('destroy', () => this._later && global.compositor.get_laters().remove(this._later));
    }

    /**
     * Quick Settings ask for the height of a menu without telling the width: it is what it was.
     *
     * @param {number} width - the width, or -1
     * @returns {number[]} the least and the natural height
     */
    vfunc_get_preferred_height(width) {
        return super.vfunc_get_preferred_height(width < 0 ? this._width : width);
    }

    /** @param {Clutter.ActorBox} box - where it is */
    vfunc_allocate(box) {
        super.vfunc_allocate(box);
        if (box.get_width() === this._width)
            return;
        this._width = box.get_width();
        this._later ||= global.compositor.get_laters().add(Meta.LaterType.BEFORE_REDRAW, () => {
            this._later = 0;
            this.queue_relayout();
            return GLib.SOURCE_REMOVE;
        });
    }
});

/** A name with its state, and a line of details below; what is wrong is told in full. */
const Description = GObject.registerClass(
class VfsdDescription extends St.BoxLayout {
    constructor() {
        super({style_class: 'vfsd-description', x_expand: true, y_align: Clutter.ActorAlign.CENTER});
        // its own property for this has another name in some versions of the shell
        this.layout_manager.orientation = Clutter.Orientation.VERTICAL;
        this._title = new St.Label({style_class: 'vfsd-title', x_expand: true});
        this._title.clutter_text.ellipsize = Pango.EllipsizeMode.END;
        this._state = new St.Label({style_class: 'vfsd-state', opacity: DIMMED});
        this._detail = new WrappedLabel({style_class: 'vfsd-detail', opacity: DIMMED});
        const line = new St.BoxLayout({style_class: 'vfsd-line', x_expand: true});
        line.add_child(this._title);
        line.add_child(this._state);
        this.add_child(line);
        this.add_child(this._detail);
    }

    /**
     * @param {object} object - a machine or share
     * @returns {string} all that it shows, for a screen reader
     */
    show(object) {
        const detail = detailText(object);
        const isWrong = needsAttention(object);
        this._title.text = object.name;
        this._state.text = stateText(object);
        this._detail.set({text: detail, visible: detail !== ''});
        this._detail.clutter_text.set({
            ellipsize: isWrong ? Pango.EllipsizeMode.NONE : Pango.EllipsizeMode.END,
            line_wrap: isWrong,
            line_wrap_mode: Pango.WrapMode.WORD_CHAR,
        });
        return [object.name, this._state.text, detail].filter(text => text).join(', ');
    }
});

/** A share below its machine: it only tells. */
const ShareRow = GObject.registerClass(
class VfsdShareRow extends PopupMenu.PopupBaseMenuItem {
    constructor(share) {
        super({activate: false, hover: false, style_class: 'vfsd-share'});
        this.add_child(new St.Icon({
            style_class: 'popup-menu-icon',
            icon_name: needsAttention(share) ? WARNING : ICONS.share,
        }));
        const description = new Description();
        this.add_child(description);
        this.accessible_name = description.show(share);
    }
});

/** A machine, or a share that belongs to none. */
export const ObjectRow = GObject.registerClass(
class VfsdObjectRow extends PopupMenu.PopupSubMenuMenuItem {
    /**
     * @param {object} object - a machine or share
     * @param {(object: object) => object[]} sharesOf - tells the shares of a machine
     * @param {(object: object, action: string) => void} act - does what the user chooses
     */
    constructor(object, sharesOf, act) {
        super('', true);
        this.object = object;
        this._sharesOf = sharesOf;
        this._act = act;
        this._content = '';
        this._actions = new Map();
        this._description = new Description();
        this.replace_child(this.label, this._description);
        // it would have half of the room
        const expander = this.get_children().find(child => child.has_style_class_name?.('popup-menu-item-expander'));
        expander?.set_x_expand(false);
        this.add_style_class_name('vfsd-row');
        this.update(object);
    }

    /**
     * Shows what is so now.
     *
     * @param {object} object - the same machine or share
     */
    update(object) {
        this.object = object;
        this.icon.icon_name = needsAttention(object) ? WARNING : ICONS[object.kind];
        this.accessible_name = this._description.show(object);
        if (this.menu.isOpen)
            this._fill();
    }

    /** @param {boolean} open - whether what belongs to it is shown; until then it has no widgets for that */
    setSubmenuShown(open) {
        if (open)
            this._fill();
        super.setSubmenuShown(open);
    }

    _fill() {
        const {object} = this;
        const shares = object.kind === 'machine' ? this._sharesOf(object) : [];
        const groups = actionsFor(object);
        const lines = shares.map(share => [share.name, stateText(share), detailText(share)]);
        const content = JSON.stringify([lines, groups]);
        if (content === this._content)
            return;
        this._content = content;
        const focused = this._focusedAction();
        this.menu.removeAll();
        this._actions.clear();
        shares.forEach(share => this.menu.addMenuItem(new ShareRow(share)));
        for (const [number, group] of groups.entries()) {
            if (number || shares.length)
                this.menu.addMenuItem(new PopupMenu.PopupSeparatorMenuItem());
            group.forEach(action => this.menu.addMenuItem(this._actionItem(action)));
        }
        if (focused)
            (this._actions.get(focused) ?? this).grab_key_focus();
    }

    _actionItem(action) {
        const {label, name} = textsOf(action);
        const item = new PopupMenu.PopupMenuItem(label);
        item.accessible_name = format(name, this.object.name);
        item.connect('activate', () => this._act(this.object, action));
        this._actions.set(action, item);
        return item;
    }

    _focusedAction() {
        const focus = global.stage.get_key_focus();
        return [...this._actions].find(([, item]) => item === focus)?.[0];
    }
});
