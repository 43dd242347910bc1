// What can be said of shares and machines without asking anybody, and without words for people.
.pragma library

var ROOT = "/org/vfsd1";
var MANAGER = "org.vfsd1.Manager";
var MACHINE = "org.vfsd1.Machine";
var SHARE = "org.vfsd1.Share";

// The plain value of what a call has returned. Up to Plasma 6.3 scalars come in wrappers, which are true even when they
// hold false; the value of a wrapped object path is only a string when it is asked for one.
function plain(value) {
    if (value === null || value === undefined || typeof value !== "object") {
        return value;
    }
    if (typeof value.length === "number") {
        return Array.from(value, plain);
    }
    if ("value" in value) {
        return typeof value.value === "object" ? String(value) : value.value;
    }
    const result = {};
    for (const key of Object.keys(value)) {
        result[key] = plain(value[key]);
    }
    return result;
}

// The objects of a reply to GetManagedObjects, by path. What the caller may not see is left out of the reply.
function objects(managed, scope) {
    const result = {};
    for (const path of Object.keys(managed)) {
        const interfaces = managed[path];
        if (interfaces[MACHINE]) {
            result[path] = machine(path, scope, interfaces[MACHINE]);
        } else if (interfaces[SHARE]) {
            result[path] = share(path, scope, interfaces[SHARE]);
        }
    }
    return result;
}

function machine(path, scope, found) {
    return Object.assign(common("machine", path, scope, found, ["stopped", "starting", "running", "paused", "stopping"]), {
        degraded: found.Degraded === true,
        suspended: found.Suspended === true,
        shares: found.Shares ?? [],
        slice: found.Slice ?? ""
    });
}

function share(path, scope, found) {
    return Object.assign(common("share", path, scope, found, ["stopped", "listening", "active", "stopping", "unavailable"]), {
        tag: found.Tag || found.Name,
        source: found.Source ?? "",
        mountPoint: found.MountPoint ?? "",
        machine: !found.Machine || found.Machine === "/" ? "" : found.Machine,
        unit: found.ServiceUnit ?? ""
    });
}

// What a machine and a share both have.
function common(kind, path, scope, found, states) {
    return {
        key: scope + path,
        kind: kind,
        scope: scope,
        path: path,
        name: found.Name,
        state: known(found.State, states),
        reason: found.Reason ?? "",
        since: found.StateChangedUSec ?? 0
    };
}

// The interfaces say: treat an unknown state as failed.
function known(state, states) {
    return states.includes(state) ? state : "failed";
}

// Whether it has a row: a share of a machine counts by way of its machine, as nobody misses it while that does not run.
function isOwn(item) {
    return item.kind === "machine" || !item.machine;
}

function isBroken(item) {
    return item.kind === "machine" ? item.state === "failed" || item.degraded : ["failed", "unavailable"].includes(item.state);
}

function isRunning(item) {
    return (item.kind === "machine" ? ["starting", "running", "paused", "stopping"] : ["active", "stopping"]).includes(item.state);
}

// What the panel tells: passive, active or attention.
function status(items) {
    const own = items.filter(isOwn);
    if (own.some(isBroken)) {
        return "attention";
    }
    return own.some(item => isRunning(item) || item.state === "listening") ? "active" : "passive";
}

// Which rows there are, in order: machines, then the shares of no machine.
function rows(items) {
    const own = items.filter(isOwn);
    const sorted = own.sort((a, b) => (a.kind === b.kind
        ? a.name.localeCompare(b.name) || (a.key < b.key ? -1 : 1)
        : (a.kind === "machine" ? -1 : 1)));
    return sorted.map(item => ({key: item.key, section: item.kind}));
}

// What happened between two looks that people should be told of: a list of {what, item}, what being "failed", "degraded" or
// "healed". Objects that were not there before are no news.
function news(before, after) {
    const result = [];
    for (const path of Object.keys(after)) {
        const item = after[path];
        const old = before[path];
        if (!old || !isOwn(item)) {
            continue;
        }
        if (["failed", "unavailable"].includes(item.state) && item.state !== old.state) {
            result.push({what: "failed", item: item});
        } else if (item.degraded && !old.degraded) {
            result.push({what: "degraded", item: item});
        } else if (isHealed(old, item)) {
            result.push({what: "healed", item: item});
        }
    }
    return result;
}

function isHealed(old, item) {
    return item.kind === "machine"
        ? old.degraded && !item.degraded && item.state === "running"
        : isBroken(old) && ["listening", "active"].includes(item.state);
}

// All paths that an action on one object may change: a machine and its shares stand and fall together.
function related(items, path) {
    const item = items[path];
    if (!item) {
        return [path];
    }
    return item.kind === "machine" ? [path, ...item.shares] : [path, item.machine].filter(one => one);
}

// A valid name for a share of this folder that no other share has.
function shareName(folder, taken) {
    const last = folder.replace(/\/+$/, "").split("/").pop();
    const ascii = last.normalize("NFD").replace(/[\u0300-\u036f]/g, "");
    // 40: the longest that a person wants to read; 128 are allowed.
    const valid = ascii.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[.-]+/, "").slice(0, 40).replace(/-+$/, "") || "share";
    let name = valid;
    for (let number = 2; taken.includes(name); number++) {
        name = valid + "-" + number;
    }
    return name;
}

// A command line for a shell that passes these arguments as they are.
function quoted(args) {
    return args.map(arg => "'" + arg.replace(/'/g, "'\\''") + "'").join(" ");
}

// Text that is shown where markup is understood.
function escaped(text) {
    return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

// The local path of a file URL.
function localPath(url) {
    return decodeURIComponent(String(url).replace(/^file:\/\//, ""));
}

// The arguments of journalctl that show what an object, its virtiofsd or its QEMU said. A user's service manager does not tag
// what processes print, so there the unit is asked for as well.
function journal(item) {
    const field = item.kind === "machine" ? "VFSD_MACHINE=" : "VFSD_SHARE=";
    const line = ["journalctl", "--" + item.scope, "--follow", "--lines=1000", field + item.name];
    if (item.scope === "user") {
        const unit = item.kind === "machine" ? "_SYSTEMD_USER_SLICE=" + item.slice : "_SYSTEMD_USER_UNIT=" + item.unit;
        line.push("+", unit);
    }
    return line;
}

// The arguments of busctl for a call that may take as long as a person needs to authenticate, in seconds.
function authorisedCall(path, iface, member, signature, args) {
    const line = ["busctl", "--system", "--timeout=120", "--allow-interactive-authorization=yes", "--quiet",
        "call", "org.vfsd1", path, iface, member];
    return signature ? [...line, signature, ...args.map(String)] : line;
}
