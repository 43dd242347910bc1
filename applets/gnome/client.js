/**
 * The client of vfsd: what there is on the buses that are looked at, as signals tell it, and calls.
 */

import Gio from 'gi://Gio';
import GLib from 'gi://GLib';

import {numbered, shareName} from './names.js';
import {INTERFACES, NAME, ROOT, Service} from './service.js';
import {happened, isActive, needsAttention, stateOf} from './states.js';
import {gettext as _} from './texts.js';

/** Microseconds after a call of our own in which what happens is still its consequence. */
const GRACE = 1_000_000;
/** How many names are tried for a share. */
const NAMES_TRIED = 100;

/** All that is looked at. */
export class Client {
    /**
     * @param {object} listener - who is told
     * @param {() => void} listener.changed - something is different: at most once in a turn of the main loop
     * @param {(object: object, what: string) => void} listener.happened - see states.happened; not for the
     *   consequences of calls of our own
     * @param {(object: object) => void} listener.recovered - it is gone, or needs no attention any more
     */
    constructor(listener) {
        this._listener = listener;
        this._services = new Map();
        this._own = new Map();
        this._waiting = [];
        this._idle = 0;
    }

    /**
     * Looks at these buses, and no others, from now on.
     *
     * @param {string[]} buses - of 'user' and 'system'
     */
    look(buses) {
        for (const [bus, service] of this._services) {
            if (buses.includes(bus))
                continue;
            service.objects.forEach(object => this._listener.recovered(object));
            service.destroy();
            this._services.delete(bus);
        }
        for (const bus of buses) {
            if (this._services.has(bus))
                continue;
            const service = new Service(bus, {
                changed: () => this._changed(),
                propertiesChanged: (object, before) => this._propertiesChanged(object, before),
                removed: object => this._removed(object),
            });
            this._services.set(bus, service);
            service.follow();
        }
        this._changed();
    }

    /** Ends all that goes on; nothing is told after that. */
    destroy() {
        this._services.forEach(service => service.destroy());
        this._services.clear();
        this._waiting = [];
        if (this._idle)
            GLib.source_remove(this._idle);
        this._idle = 0;
    }

    /** @returns {string[]} the buses that are looked at */
    get buses() {
        return [...this._services.keys()];
    }

    /** @returns {string[]} those on which vfsd runs */
    get running() {
        return this.buses.filter(bus => this._services.get(bus).owner);
    }

    /** @returns {object[]} all machines, by name */
    get machines() {
        return this._sorted(object => object.kind === 'machine');
    }

    /** @returns {object[]} the shares that belong to no machine, by name */
    get shares() {
        return this._sorted(object => object.kind === 'share' && object.properties.Machine === '/');
    }

    /** @returns {string} 'attention', 'active' or 'passive' */
    get status() {
        const shown = [...this.machines, ...this.shares];
        if (shown.some(needsAttention))
            return 'attention';
        return shown.some(isActive) ? 'active' : 'passive';
    }

    /**
     * @param {object} machine - a machine
     * @returns {object[]} its shares, in its order
     */
    sharesOf(machine) {
        const objects = this._services.get(machine.bus)?.objects;
        return (machine.properties.Shares ?? []).map(path => objects?.get(path)).filter(share => share);
    }

    /**
     * Calls a method of a machine or share.
     *
     * @param {object} object - it
     * @param {string} method - the method's name
     * @param {?GLib.Variant} parameters - a tuple
     */
    async call(object, method, parameters = null) {
        await this._asOwn(object, () => this._call(object, method, parameters));
    }

    /**
     * Has a machine shut down and starts it again once it has.
     *
     * @param {object} machine - a machine that runs
     */
    async restart(machine) {
        await this._asOwn(machine, async () => {
            const ended = new Promise((resolve, reject) => this._waiting.push({machine, resolve, reject}));
            ended.catch(() => {});
            await this._call(machine, 'Shutdown', new GLib.Variant('(t)', [0]));
            await ended;
            await this._call(machine, 'Start');
        });
    }

    /**
     * Ends a share that belongs to no machine, and forgets it.
     *
     * @param {object} share - the share
     */
    async stopSharing(share) {
        await this._asOwn(share, async () => {
            if (stateOf(share) === 'active')
                await this._call(share, 'Stop');
            await this._call(share, 'Remove');
        });
    }

    /**
     * Shares a folder under a name of its own, until the next restart of the computer.
     *
     * @param {string} folder - its absolute path
     * @returns {Promise<string>} the share's name
     */
    async shareFolder(folder) {
        const service = this._services.get('user') ?? this._services.get('system');
        for (let number = 1; ; number++) {
            const name = numbered(shareName(folder), number);
            const options = {Persistent: GLib.Variant.new_boolean(false)};
            const parameters = new GLib.Variant('(ssa{sv})', [name, folder, options]);
            try {
                await service.call(NAME, ROOT, 'org.vfsd1.Manager', 'CreateShare', parameters);
                return name;
            } catch (error) {
                if (Gio.DBusError.get_remote_error(error) !== 'org.vfsd1.Error.ShareExists' || number === NAMES_TRIED)
                    throw error;
            }
        }
    }

    /** Starts vfsd on the buses that are looked at and where it does not run. */
    async startService() {
        const missing = [...this._services.values()].filter(service => !service.owner);
        await Promise.all(missing.map(service => service.call('org.freedesktop.DBus', '/org/freedesktop/DBus',
            'org.freedesktop.DBus', 'StartServiceByName', new GLib.Variant('(su)', [NAME, 0]))));
    }

    async _call(object, method, parameters = null) {
        const service = this._services.get(object.bus);
        await service?.call(NAME, object.path, INTERFACES[object.kind], method, parameters);
    }

    async _asOwn(object, body) {
        const own = this._own.get(object.key) ?? {calls: 0, until: 0};
        own.calls++;
        this._own.set(object.key, own);
        try {
            await body();
        } finally {
            own.calls--;
            own.until = GLib.get_monotonic_time() + GRACE;
        }
    }

    _isOwn(object) {
        const objects = this._services.get(object.bus)?.objects;
        const related = object.kind === 'machine' ? this.sharesOf(object) : [objects?.get(object.properties.Machine)];
        return [object, ...related].some(other => {
            const own = this._own.get(other?.key);
            return own && (own.calls > 0 || GLib.get_monotonic_time() < own.until);
        });
    }

    _propertiesChanged(object, before) {
        this._settle(object, stateOf(object));
        const what = happened(object, before);
        if (what && !this._isOwn(object))
            this._listener.happened(object, what);
        else if (!needsAttention(object) && needsAttention({...object, properties: before}))
            this._listener.recovered(object);
    }

    _removed(object) {
        this._own.delete(object.key);
        this._settle(object, 'removed');
        this._listener.recovered(object);
    }

    _settle(object, state) {
        if (!['stopped', 'failed', 'removed'].includes(state))
            return;
        const concerned = this._waiting.filter(({machine}) => machine.key === object.key);
        this._waiting = this._waiting.filter(({machine}) => machine.key !== object.key);
        for (const {resolve, reject} of concerned) {
            if (state === 'removed')
                reject(new Error(_('vfsd is not running')));
            else
                resolve();
        }
    }

    _changed() {
        this._idle ||= GLib.idle_add(GLib.PRIORITY_DEFAULT_IDLE, () => {
            this._idle = 0;
            this._listener.changed();
            return GLib.SOURCE_REMOVE;
        });
    }

    _sorted(condition) {
        const all = [...this._services.values()].flatMap(service => [...service.objects.values()]);
        return all.filter(condition).sort((one, other) =>
            one.name.localeCompare(other.name, undefined, {numeric: true}) || one.bus.localeCompare(other.bus));
    }
}
