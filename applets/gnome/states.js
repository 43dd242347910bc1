/**
 * What a machine or a shared folder is, in words and as far as the rest has to know; plain logic.
 *
 * An object, here and elsewhere, is what the client has of one: {bus, kind, path, key, name, properties}.
 */

import {format, gettext as _, ngettext} from './texts.js';

const RUNNING = ['running', 'paused'];
const SERVING = ['listening', 'active'];
const BROKEN = ['failed', 'unavailable'];
const KNOWN = {
    machine: ['stopped', 'starting', 'running', 'paused', 'stopping', 'failed'],
    share: ['stopped', 'listening', 'active', 'stopping', 'failed', 'unavailable'],
};

/**
 * The state; one that a later vfsd has and we don't know counts as failed, as vfsd asks of its clients.
 *
 * @param {object} object - a machine or share
 * @returns {string}
 */
export function stateOf(object) {
    const {State: state} = object.properties;
    return KNOWN[object.kind].includes(state) ? state : 'failed';
}

/**
 * Whether somebody should look at it.
 *
 * @param {object} object - a machine or share
 * @returns {boolean}
 */
export function needsAttention(object) {
    const state = stateOf(object);
    return BROKEN.includes(state) || RUNNING.includes(state) && Boolean(object.properties.Degraded);
}

/**
 * Whether it runs, or is about to, or is used.
 *
 * @param {object} object - a machine or share
 * @returns {boolean}
 */
export function isActive(object) {
    return !['stopped', ...BROKEN].includes(stateOf(object));
}

/**
 * The state as it is shown.
 *
 * @param {object} object - a machine or share
 * @returns {string}
 */
export function stateText(object) {
    const state = stateOf(object);
    if (object.kind === 'machine' && RUNNING.includes(state) && object.properties.Degraded)
        return _('Running, a share is broken');
    if (state === 'stopped' && object.properties.Suspended)
        return _('Suspended');
    switch (state) {
    case 'stopped':
        return _('Stopped');
    case 'starting':
        return _('Starting…');
    case 'running':
        return _('Running');
    case 'paused':
        return _('Paused');
    case 'stopping':
        return _('Stopping…');
    case 'listening':
        return _('Waiting for a client');
    case 'active':
        return _('In use');
    case 'unavailable':
        return _('Unavailable');
    default:
        return _('Failed');
    }
}

/**
 * The line below the name: why it needs attention, or what else there is to know.
 *
 * @param {object} object - a machine or share
 * @returns {string}
 */
export function detailText(object) {
    const {Reason: reason, Source: source, Shares: shares} = object.properties;
    const details = object.bus === 'system' ? [_('System')] : [];
    if (needsAttention(object) && reason)
        details.push(reason);
    else if (object.kind === 'share' && source)
        details.push(source);
    else if (object.kind === 'machine' && shares?.length)
        details.push(format(ngettext('%d share', '%d shares', shares.length), shares.length));
    return details.join(' · ');
}

/**
 * What a change of properties means to the user.
 *
 * A share of a machine says nothing itself: its machine fails or is degraded, and says so.
 *
 * @param {object} object - a machine or share, changed already
 * @param {object} before - its properties before
 * @returns {string} 'failed', 'unavailable', 'degraded', 'healed', or '' for nothing
 */
export function happened(object, before) {
    const old = stateOf({...object, properties: before});
    const state = stateOf(object);
    if (object.kind === 'share') {
        if (object.properties.Machine !== '/')
            return '';
        if (BROKEN.includes(state))
            return state === old ? '' : state;
        return BROKEN.includes(old) && SERVING.includes(state) ? 'healed' : '';
    }
    if (state === 'failed')
        return old === 'failed' ? '' : 'failed';
    if (!RUNNING.includes(state) || !RUNNING.includes(old))
        return '';
    const [broken, wasBroken] = [Boolean(object.properties.Degraded), Boolean(before.Degraded)];
    if (broken === wasBroken)
        return '';
    return broken ? 'degraded' : 'healed';
}
