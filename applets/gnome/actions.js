/**
 * What the user can do, in which state; plain logic.
 */

import GLib from 'gi://GLib';

import {needsAttention, stateOf} from './states.js';
import {gettext as _} from './texts.js';

/**
 * The actions for an object as it is: first those that one wants mostly, then the others.
 *
 * @param {object} object - a machine or share
 * @returns {string[][]} names of actions, in two groups
 */
export function actionsFor(object) {
    const state = stateOf(object);
    if (object.kind === 'share') {
        const start = ['listening', 'active', 'stopping', 'unavailable'].includes(state) ? [] : ['start'];
        return [[...start, 'stop-sharing'], ['show-log']];
    }
    switch (state) {
    case 'running':
        return [
            ['shut-down', ...needsAttention(object) ? ['restart'] : [], 'pause', 'open-console'],
            ['force-off', 'show-log'],
        ];
    case 'paused':
        return [['resume', 'open-console'], ['force-off', 'show-log']];
    case 'starting':
    case 'stopping':
        return [['open-console'], ['force-off', 'show-log']];
    default:
        return [[object.properties.Suspended ? 'thaw' : 'start'], ['show-log']];
    }
}

/**
 * How an action is called: its label, its accessible name, and what is said if it fails; the last two with %s for the
 * object's name.
 *
 * @param {string} action - the action's name
 * @returns {{label: string, name: string, failure: string}}
 */
export function textsOf(action) {
    switch (action) {
    case 'start':
        return {label: _('Start'), name: _('Start “%s”'), failure: _('Could not start “%s”')};
    case 'shut-down':
        return {label: _('Shut Down'), name: _('Shut down “%s”'), failure: _('Could not shut down “%s”')};
    case 'restart':
        return {label: _('Restart'), name: _('Restart “%s”'), failure: _('Could not restart “%s”')};
    case 'pause':
        return {label: _('Pause'), name: _('Pause “%s”'), failure: _('Could not pause “%s”')};
    case 'resume':
    case 'thaw':
        return {label: _('Resume'), name: _('Resume “%s”'), failure: _('Could not resume “%s”')};
    case 'force-off':
        return {label: _('Force Off'), name: _('Force off “%s”'), failure: _('Could not force off “%s”')};
    case 'stop-sharing':
        return {
            label: _('Stop Sharing'),
            name: _('Stop sharing “%s”'),
            failure: _('Could not stop sharing “%s”'),
        };
    case 'open-console':
        return {
            label: _('Open Console'),
            name: _('Open the console of “%s”'),
            failure: _('Could not open the console of “%s”'),
        };
    default:
        return {label: _('Show Log'), name: _('Show the log of “%s”'), failure: _('Could not show the log of “%s”')};
    }
}

/**
 * Does it.
 *
 * @param {object} client - the client
 * @param {(argv: string[]) => void} openTerminal - runs a command in a terminal
 * @param {object} object - a machine or share
 * @param {string} action - the action's name
 * @returns {Promise<void>}
 */
export async function perform(client, openTerminal, object, action) {
    switch (action) {
    case 'start':
        return client.call(object, 'Start');
    case 'shut-down':
        return client.call(object, 'Shutdown', new GLib.Variant('(t)', [0]));
    case 'restart':
        return client.restart(object);
    case 'pause':
        return client.call(object, 'Pause');
    case 'resume':
        return client.call(object, 'Resume');
    case 'thaw':
        return client.call(object, 'Thaw');
    case 'force-off':
        return client.call(object, 'Kill');
    case 'stop-sharing':
        return client.stopSharing(object);
    case 'open-console':
        return openTerminal(['vfsctl', `--${object.bus}`, 'console', object.name]);
    default:
        return openTerminal(logCommand(object));
    }
}

/**
 * The command that shows an object's log and goes on to show what comes.
 *
 * On a user's bus the output of QEMU and virtiofsd is known by their units only, elsewhere by the object's name.
 *
 * @param {object} object - a machine or share
 * @returns {string[]}
 */
export function logCommand(object) {
    const {Slice: slice, ServiceUnit: unit} = object.properties;
    const matches = [`VFSD_${object.kind.toUpperCase()}=${object.name}`];
    if (object.bus === 'user' && slice)
        matches.push('+', `_SYSTEMD_USER_SLICE=${slice}`);
    if (object.bus === 'user' && unit)
        matches.push('+', `_SYSTEMD_USER_UNIT=${unit}`);
    return ['journalctl', '--lines=500', '--follow', ...matches];
}

/**
 * What an error says, without the name that D-Bus puts before it.
 *
 * @param {Error} error - the error
 * @returns {string}
 */
export function errorText(error) {
    return error.message.replace(/^GDBus\.Error:[^:\s]+: /, '');
}
