import QtQuick

import "../code/logic.js" as Logic

/*
 * Runs programs, by way of Engine.qml. Plasma's D-Bus module can't do it: it does not marshal the structures of systemd's
 * StartTransientUnit, and has no flag for interactive authorisation.
 */
Item {
    id: root

    readonly property Component engineComponent: Qt.createComponent("Engine.qml")
    readonly property bool isThere: engineComponent.status === Component.Ready
    property int count: 0
    property var waiting: ({})

    // done: called with {code, output, error}.
    function run(args: var, done: var) {
        if (!isThere) {
            done({code: 127, output: "", error: i18n("Plasma has no “executable” engine here. Install Plasma5Support.")});
            return;
        }
        // The engine takes equal lines for one, so each gets a number.
        const line = Logic.quoted(args) + " #" + count;
        count += 1;
        waiting[line] = done;
        engine.item.connectSource(line);
    }

    /*
     * Run a command in the default terminal: in a unit of its own, so that it outlives the shell and this applet, with what a
     * session needs in its environment, which the service manager has.
     * done: called with the error's text, if there is one.
     */
    function openTerminal(args: var, done: var) {
        const unit = ["systemd-run", "--user", "--quiet", "--collect", "--slice=app.slice", "--service-type=exec", "--"];
        run(["sh", "-c", root.findTerminal], found => {
            if (found.code !== 0) {
                done(found.error);
                return;
            }
            const terminal = found.output.split("\n").filter(one => one);
            if (!terminal.length) {
                done(i18n("No terminal was found. Install Konsole or another one."));
                return;
            }
            run([...unit, ...terminal, ...args], result => {
                if (result.code !== 0) {
                    done(result.error);
                }
            });
        });
    }

    // Prints the words that start a terminal, one a line: as the user has chosen it, as the desktop has it, or any.
    readonly property string findTerminal: `
        if command -v xdg-terminal-exec; then exit; fi
        chosen=$(kreadconfig6 --group General --key TerminalApplication 2>/dev/null)
        for one in $chosen konsole x-terminal-emulator xterm; do
            if command -v "$one"; then echo -e; exit; fi
        done`

    Loader {
        id: engine
        sourceComponent: root.isThere ? root.engineComponent : null
    }

    Connections {
        target: engine.item
        function onEnded(line: string, result: var) {
            const done = root.waiting[line];
            delete root.waiting[line];
            if (done) {
                done(result);
            }
        }
    }
}
