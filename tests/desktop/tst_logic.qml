import QtQuick
import QtTest

import "../../applets/kde/contents/code/logic.js" as Logic

TestCase {
    name: "Logic"

    function machine(changes: var): var {
        const found = {Name: "box", State: "running", Reason: "", Degraded: false, Shares: []};
        return Logic.machine("/org/vfsd1/machine/box", "user", Object.assign(found, changes));
    }

    function share(changes: var): var {
        const found = {Name: "files", State: "listening", Machine: "/", Source: "/srv"};
        return Logic.share("/org/vfsd1/share/files", "user", Object.assign(found, changes));
    }

    // What Logic.news says of one object that was like this and is like that.
    function told(before: var, after: var): var {
        return Logic.news({path: before}, {path: after}).map(one => one.what);
    }

    function test_plain() {
        compare(Logic.plain({Degraded: {value: false}, Name: "x", Shares: [{value: "/a"}]}), {Degraded: false, Name: "x", Shares: ["/a"]});
    }

    function test_share_name_data() {
        return [
            {tag: "plain", folder: "/srv/files", taken: [], name: "files"},
            {tag: "taken", folder: "/srv/files/", taken: ["files", "files-2"], name: "files-3"},
            {tag: "letters", folder: "/home/Übung & Spaß", taken: [], name: "Ubung-Spa"},
            {tag: "hidden", folder: "/home/.-config", taken: [], name: "config"},
            {tag: "root", folder: "/", taken: [], name: "share"},
            {tag: "none valid", folder: "/写真", taken: [], name: "share"},
            {tag: "long", folder: "/" + "a".repeat(200), taken: [], name: "a".repeat(40)}
        ];
    }

    function test_share_name(data) {
        compare(Logic.shareName(data.folder, data.taken), data.name);
    }

    function test_quoted() {
        compare(Logic.quoted(["echo", "it's", "$HOME `id` \"x\""]), "'echo' 'it'\\''s' '$HOME `id` \"x\"'");
    }

    function test_local_path() {
        compare(Logic.localPath("file:///home/a%20b/50%25"), "/home/a b/50%");
    }

    function test_unknown_states_count_as_failed() {
        compare(machine({State: "dreaming"}).state, "failed");
        compare(share({State: "dreaming"}).state, "failed");
    }

    function test_hidden_properties_are_no_failure() {
        compare(Logic.share("/p", "system", {Name: "files", State: "active", Machine: "/"}).source, "");
    }

    function test_news_data() {
        return [
            {tag: "failed", before: machine({}), after: machine({State: "failed"}), news: ["failed"]},
            {tag: "still failed", before: machine({State: "failed"}), after: machine({State: "failed", Reason: "x"}), news: []},
            {tag: "stopped", before: machine({}), after: machine({State: "stopped"}), news: []},
            {tag: "degraded", before: machine({}), after: machine({Degraded: true}), news: ["degraded"]},
            {tag: "healed", before: machine({Degraded: true}), after: machine({}), news: ["healed"]},
            {tag: "ended while degraded", before: machine({Degraded: true}), after: machine({State: "stopped"}), news: []},
            {tag: "started again", before: machine({State: "failed"}), after: machine({}), news: []},
            {tag: "unavailable", before: share({}), after: share({State: "unavailable"}), news: ["failed"]},
            {tag: "back", before: share({State: "unavailable"}), after: share({}), news: ["healed"]},
            {tag: "stopped share", before: share({State: "failed"}), after: share({State: "stopped"}), news: []},
            {
                tag: "a machine's share",
                before: share({Machine: "/org/vfsd1/machine/box"}),
                after: share({Machine: "/org/vfsd1/machine/box", State: "failed"}),
                news: []
            }
        ];
    }

    function test_news(data) {
        compare(told(data.before, data.after), data.news);
    }

    function test_new_objects_are_no_news() {
        compare(Logic.news({}, {path: machine({State: "failed"})}), []);
    }

    function test_status_data() {
        return [
            {tag: "nothing", items: [], status: "passive"},
            {tag: "stopped", items: [machine({State: "stopped"}), share({State: "stopped"})], status: "passive"},
            {tag: "running", items: [machine({State: "stopped"}), machine({})], status: "active"},
            {tag: "shared", items: [share({})], status: "active"},
            {tag: "broken", items: [machine({}), share({State: "unavailable"})], status: "attention"},
            {tag: "degraded", items: [machine({Degraded: true})], status: "attention"},
            {
                tag: "share of a machine that does not run",
                items: [machine({State: "stopped"}), share({State: "unavailable", Machine: "/org/vfsd1/machine/box"})],
                status: "passive"
            }
        ];
    }

    function test_status(data) {
        compare(Logic.status(data.items), data.status);
    }

    function test_rows_are_machines_first() {
        const items = [share({}), machine({Name: "b"}), share({Machine: "/org/vfsd1/machine/box"})];
        compare(Logic.rows(items).map(row => row.section), ["machine", "share"]);
    }
}
