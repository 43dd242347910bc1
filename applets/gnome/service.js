/**
 * vfsd on one bus, as the client sees it.
 *
 * To look starts nothing: vfsd is read by the unique name that it has while it runs. Calls that the user asks for may
 * start it, and may have polkit ask the user.
 */

import Gio from 'gi://Gio';

Gio._promisify(Gio, 'bus_get');
Gio._promisify(Gio.DBusConnection.prototype, 'call');

/** The name, and the path of the root object. */
export const NAME = 'org.vfsd1';
export const ROOT = '/org/vfsd1';
/** The interface of each kind of object. */
export const INTERFACES = {machine: 'org.vfsd1.Machine', share: 'org.vfsd1.Share'};

const OBJECT_MANAGER = 'org.freedesktop.DBus.ObjectManager';
const PROPERTIES = 'org.freedesktop.DBus.Properties';
const WANTED = [
    'Name', 'State', 'Reason', 'Degraded', 'Suspended', 'Shares', 'Slice', 'Unit', 'Source', 'Machine', 'ServiceUnit',
];

/** Milliseconds for a call: polkit's dialog waits for the user meanwhile. */
const PATIENCE = 120_000;
/** Milliseconds for reading all objects. */
const READ_PATIENCE = 20_000;

/** What vfsd has on one bus. */
export class Service {
    /**
     * @param {string} bus - 'user' or 'system'
     * @param {object} listener - {changed(), propertiesChanged(object, before), removed(object)}
     */
    constructor(bus, listener) {
        this.bus = bus;
        this.objects = new Map();
        this.owner = null;
        this._listener = listener;
        this._cancellable = new Gio.Cancellable();
        this._connection = null;
        this._watch = 0;
        this._subscriptions = [];
        this._backlog = null;
    }

    /** Follows vfsd from now on. */
    follow() {
        this._follow().catch(e => this._complain(e));
    }

    /** Ends all that goes on; nothing is told after that. */
    destroy() {
        this._cancellable.cancel();
        if (this._watch)
            Gio.bus_unwatch_name(this._watch);
        this._watch = 0;
        this._unsubscribe();
        this._listener = null;
        this.objects.clear();
    }

    /**
     * Calls a method, with whatever it takes: vfsd may be started, and the user asked to authenticate.
     *
     * @param {string} name - the bus name
     * @param {string} path - the object's path
     * @param {string} iface - the interface
     * @param {string} method - the method
     * @param {?GLib.Variant} parameters - a tuple
     * @returns {Promise<any>} the results, unpacked
     */
    async call(name, path, iface, method, parameters = null) {
        const connection = await this._connect();
        const reply = await connection.call(name, path, iface, method, parameters, null,
            Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION, PATIENCE, null);
        return reply.recursiveUnpack();
    }

    async _connect() {
        const type = this.bus === 'system' ? Gio.BusType.SYSTEM : Gio.BusType.SESSION;
        this._connection ??= await Gio.bus_get(type, this._cancellable);
        return this._connection;
    }

    async _follow() {
        const connection = await this._connect();
        if (!this._listener)
            return;
        this._watch = Gio.bus_watch_name_on_connection(connection, NAME, Gio.BusNameWatcherFlags.NONE,
            (_connection, _name, owner) => this._appeared(owner).catch(e => this._complain(e)),
            () => this._vanished());
    }

    async _appeared(owner) {
        this._vanished();
        this.owner = owner;
        this._backlog = [];
        this._subscribe();
        const reply = await this._connection.call(owner, ROOT, OBJECT_MANAGER, 'GetManagedObjects', null, null,
            Gio.DBusCallFlags.NO_AUTO_START, READ_PATIENCE, this._cancellable);
        if (this.owner !== owner || !this._listener)
            return;
        const [objects] = reply.recursiveUnpack();
        for (const [path, interfaces] of Object.entries(objects))
            this._add(path, interfaces);
        const backlog = this._backlog;
        this._backlog = null;
        backlog.forEach(([path, member, body]) => this._heard(path, member, body));
        this._listener.changed();
    }

    _vanished() {
        this._unsubscribe();
        this.owner = null;
        this._backlog = null;
        const gone = [...this.objects.values()];
        this.objects.clear();
        gone.forEach(object => this._listener?.removed(object));
        this._listener?.changed();
    }

    _subscribe() {
        for (const [iface, member] of [
            [OBJECT_MANAGER, 'InterfacesAdded'],
            [OBJECT_MANAGER, 'InterfacesRemoved'],
            [PROPERTIES, 'PropertiesChanged'],
        ]) {
            this._subscriptions.push(this._connection.signal_subscribe(this.owner, iface, member, null, null,
                Gio.DBusSignalFlags.NONE, (_connection, _sender, path, _iface, _member, body) => {
                    if (this._backlog)
                        this._backlog.push([path, member, body]);
                    else
                        this._heard(path, member, body);
                }));
        }
    }

    _unsubscribe() {
        this._subscriptions.forEach(id => this._connection.signal_unsubscribe(id));
        this._subscriptions = [];
    }

    _heard(path, member, body) {
        if (!this._listener)
            return;
        if (member === 'InterfacesAdded') {
            this._add(...body.recursiveUnpack());
        } else if (member === 'InterfacesRemoved') {
            const [gone] = body.recursiveUnpack();
            const object = this.objects.get(gone);
            this.objects.delete(gone);
            if (object)
                this._listener.removed(object);
        } else {
            const object = this.objects.get(path);
            const [iface, changed] = body.recursiveUnpack();
            if (!object || INTERFACES[object.kind] !== iface)
                return;
            const before = object.properties;
            object.properties = {...before, ...wanted(changed)};
            this._listener.propertiesChanged(object, before);
        }
        this._listener.changed();
    }

    _add(path, interfaces) {
        for (const [kind, iface] of Object.entries(INTERFACES)) {
            const properties = interfaces[iface];
            if (!properties)
                continue;
            this.objects.set(path, {
                bus: this.bus,
                kind,
                path,
                key: `${this.bus}:${path}`,
                name: properties.Name,
                properties: wanted(properties),
            });
        }
    }

    _complain(error) {
        // not if nobody looks any more, nor if vfsd ended while it was asked: the next one is asked again
        if (this._listener && this.owner)
            console.warn(`vfsd: ${error.message}`);
    }
}

/**
 * @param {object} properties - properties of a machine or share
 * @returns {object} those that we need
 */
function wanted(properties) {
    return Object.fromEntries(WANTED.filter(name => name in properties).map(name => [name, properties[name]]));
}
