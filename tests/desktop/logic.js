// What is plain logic in the extension, by gjs alone: gjs -m logic.js FOLDER OF THE EXTENSION.

import GLib from 'gi://GLib';
import System from 'system';

const [folder] = ARGV;
const load = name => import(`file://${folder}/${name}.js`);
const {shareName, numbered} = await load('names');
const {detailText, happened, isActive, needsAttention, stateOf, stateText} = await load('states');
const {actionsFor, errorText, logCommand, textsOf} = await load('actions');
const {terminalCommand} = await load('terminal');
const {format} = await load('texts');

let failures = 0;

function same(found, expected, what) {
    const [one, other] = [JSON.stringify(found), JSON.stringify(expected)];
    if (one === other)
        return;
    failures++;
    printerr(`${what}: ${one}, not ${other}`);
}

const machine = (State, properties = {}) =>
    ({kind: 'machine', bus: 'user', name: 'web', properties: {State, Shares: [], Reason: '', ...properties}});
const share = (State, properties = {}) =>
    ({kind: 'share', bus: 'user', name: 'src', properties: {State, Machine: '/', Reason: '', ...properties}});

for (const [path, name] of [
    ['/home/me/src', 'src'],
    ['/home/me/src/', 'src'],
    ['/', 'share'],
    ['/home/me/.config', 'config'],
    ['/srv/Zürich & Süden', 'Zurich-Suden'],
    ['/srv/日本', 'share'],
    ['/srv/日本 2', '2'],
    ['/srv/-x-', 'x'],
    [`/srv/${'a'.repeat(200)}`, 'a'.repeat(60)],
])
    same(shareName(path), name, path);
same(numbered('src', 1), 'src', 'the first');
same(numbered('src', 2), 'src-2', 'the second');
same(numbered('a'.repeat(60), 10), `${'a'.repeat(57)}-10`, 'one that is too long');

// a state that only a later vfsd has is a failure
same(stateOf(machine('dreaming')), 'failed', 'an unknown state');
same(stateText(machine('running', {Degraded: true})), 'Running, a share is broken', 'degraded');
same(stateText(machine('stopped', {Suspended: true})), 'Suspended', 'suspended');
same(stateText(share('listening')), 'Waiting for a client', 'listening');
same([needsAttention(machine('stopped', {Degraded: true})), needsAttention(share('unavailable'))], [false, true], 'attention');
same(['stopped', 'failed', 'starting', 'stopping', 'paused'].map(state => isActive(machine(state))),
    [false, false, true, true, true], 'what is active');
same(detailText(machine('failed', {Reason: 'why'})), 'why', 'the reason');
same(detailText({...machine('running', {Shares: ['/a', '/b']}), bus: 'system'}), 'System · 2 shares', 'of the system');
// what the system's vfsd does not tell everybody
same(detailText(share('listening', {Source: undefined})), '', 'a source that is not told');

const became = (before, after) => happened(after, before.properties);
for (const [before, after, what] of [
    [machine('running'), machine('failed'), 'failed'],
    [machine('starting'), machine('failed'), 'failed'],
    [machine('failed'), machine('failed', {Reason: 'again'}), ''],
    [machine('failed'), machine('running'), ''],
    [machine('running'), machine('stopped'), ''],
    [machine('running'), machine('running', {Degraded: true}), 'degraded'],
    [machine('running', {Degraded: true}), machine('running'), 'healed'],
    [machine('paused', {Degraded: true}), machine('running'), 'healed'],
    [machine('running', {Degraded: true}), machine('stopping'), ''],
    [machine('running', {Degraded: true}), machine('stopped'), ''],
    [share('active'), share('failed'), 'failed'],
    [share('listening'), share('unavailable'), 'unavailable'],
    [share('unavailable'), share('listening'), 'healed'],
    [share('failed'), share('stopped'), ''],
    [share('active', {Machine: '/m'}), share('failed', {Machine: '/m'}), ''],
])
    same(became(before, after), what, `${before.properties.State} to ${after.properties.State}`);

for (const [object, actions] of [
    [machine('stopped'), ['start', 'show-log']],
    [machine('stopped', {Suspended: true}), ['thaw', 'show-log']],
    [machine('failed'), ['start', 'show-log']],
    [machine('starting'), ['open-console', 'force-off', 'show-log']],
    [machine('running'), ['shut-down', 'pause', 'open-console', 'force-off', 'show-log']],
    [machine('running', {Degraded: true}), ['shut-down', 'restart', 'pause', 'open-console', 'force-off', 'show-log']],
    [machine('paused'), ['resume', 'open-console', 'force-off', 'show-log']],
    [machine('stopping'), ['open-console', 'force-off', 'show-log']],
    [share('listening'), ['stop-sharing', 'show-log']],
    [share('stopped'), ['start', 'stop-sharing', 'show-log']],
    [share('unavailable'), ['stop-sharing', 'show-log']],
]) {
    const found = actionsFor(object).flat();
    same(found, actions, `${object.kind} ${object.properties.State}`);
    for (const action of found) {
        const {label, name, failure} = textsOf(action);
        same([Boolean(label), name.split('%s').length, failure.split('%s').length], [true, 2, 2], action);
    }
}

same(logCommand({...machine('running', {Slice: 'vfsd-web.slice'}), bus: 'system'}).slice(3), ['VFSD_MACHINE=web'], 'a log');
same(errorText(new Error('GDBus.Error:org.vfsd1.Error.WrongState: machine "web" is running')),
    'machine "web" is running', 'an error');
same(errorText(new Error('no: colon')), 'no: colon', 'another error');
same(format('%s and %d', 'one', 2), 'one and 2', 'a text');
for (const [there, command] of [
    [['konsole', 'kgx', 'xdg-terminal-exec'], ['xdg-terminal-exec', 'top']],
    [['konsole', 'kgx'], ['kgx', '--', 'top']],
    [['xterm'], ['xterm', '-e', 'top']],
    [[], null],
])
    same(terminalCommand(['top'], name => there.includes(name) ? name : null), command, `with ${there}`);

print(`${failures} failures in GLib ${GLib.MAJOR_VERSION}.${GLib.MINOR_VERSION}`);
System.exit(failures ? 1 : 0);
