import QtQuick
import org.kde.plasma.plasma5support as Plasma5Support

// Plasma's "executable" engine, by which an applet without compiled code runs programs. Not every Plasma brings it along.
Plasma5Support.DataSource {
    id: root

    // A command line has ended; result: {code, output, error}.
    signal ended(string line, var result)

    engine: "executable"
    onNewData: (line, data) => {
        disconnectSource(line);
        ended(line, {code: data["exit code"], output: data["stdout"], error: data["stderr"].trim()});
    }
}
