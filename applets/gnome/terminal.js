/**
 * Commands in the user's terminal.
 */

import Gio from 'gi://Gio';
import GLib from 'gi://GLib';

import {gettext as _} from './texts.js';

/** The user's own choice first, then each desktop's, GNOME's before others. */
const TERMINALS = [
    ['xdg-terminal-exec'],
    ['ptyxis', '--new-window', '--'],
    ['kgx', '--'],
    ['gnome-terminal', '--'],
    ['konsole', '-e'],
    ['xterm', '-e'],
];

/**
 * How a command is run in the first terminal that there is.
 *
 * @param {string[]} command - the command
 * @param {(name: string) => ?string} find - where a program is, if anywhere
 * @returns {?string[]}
 */
export function terminalCommand(command, find = GLib.find_program_in_path) {
    const terminal = TERMINALS.find(([program]) => find(program));
    return terminal ? [...terminal, ...command] : null;
}

/**
 * Runs a command in a terminal; it outlives us.
 *
 * @param {string[]} command - the command
 */
export function openTerminal(command) {
    const argv = terminalCommand(command);
    if (!argv)
        throw new Error(_('There is no terminal. Install one, such as GNOME Console.'));
    // as the shell starts applications, so that the window is allowed to take the focus
    const line = argv.map(word => GLib.shell_quote(word).replaceAll('%', '%%')).join(' ');
    const app = Gio.AppInfo.create_from_commandline(line, null, Gio.AppInfoCreateFlags.SUPPORTS_STARTUP_NOTIFICATION);
    app.launch([], global.create_app_launch_context(0, -1));
}
