// What is told to people. All of vfsd's applets use the same words and one catalogue, so what is filled in is written as %s
// and %d here too.
.import "logic.js" as Logic

function filled(text, value) {
    return text.replace(/%[sd]/, () => value);
}

function state(item) {
    if (item.suspended && item.state === "stopped") {
        return i18n("Suspended");
    }
    if (item.kind === "machine" && item.degraded && ["running", "paused"].includes(item.state)) {
        return i18n("Running, a share is broken");
    }
    switch (item.state) {
    case "stopped":
        return i18n("Stopped");
    case "starting":
        return i18n("Starting…");
    case "running":
        return i18n("Running");
    case "paused":
        return i18n("Paused");
    case "stopping":
        return i18n("Stopping…");
    case "listening":
        return i18n("Waiting for a client");
    case "active":
        return i18n("In use");
    case "unavailable":
        return i18n("Unavailable");
    default:
        return i18n("Failed");
    }
}

// The second line of a row. isMarked: whether objects of both buses are shown.
function subtitle(item, isMarked) {
    const parts = [state(item)];
    if (isMarked && item.scope === "system") {
        parts.push(i18n("System"));
    }
    if (Logic.isBroken(item) && item.reason) {
        parts.push(item.reason);
    } else if (item.kind === "share" && item.source) {
        parts.push(item.source);
    } else if (item.kind === "machine" && item.shares.length) {
        parts.push(filled(i18np("%d share", "%d shares", item.shares.length), item.shares.length));
    }
    return parts.join(" · ");
}

// What an action does, what a screen reader is told of its button, and what is said if it fails.
function action(verb, name) {
    const all = {
        start: [i18n("Start"), i18n("Start “%s”"), i18n("Could not start “%s”")],
        shutdown: [i18n("Shut Down"), i18n("Shut down “%s”"), i18n("Could not shut down “%s”")],
        restart: [i18n("Restart"), i18n("Restart “%s”"), i18n("Could not restart “%s”")],
        pause: [i18n("Pause"), i18n("Pause “%s”"), i18n("Could not pause “%s”")],
        resume: [i18n("Resume"), i18n("Resume “%s”"), i18n("Could not resume “%s”")],
        thaw: [i18n("Resume"), i18n("Resume “%s”"), i18n("Could not resume “%s”")],
        kill: [i18n("Force Off"), i18n("Force off “%s”"), i18n("Could not force off “%s”")],
        remove: [i18n("Stop Sharing"), i18n("Stop sharing “%s”"), i18n("Could not stop sharing “%s”")],
        console: [i18n("Open Console"), i18n("Open the console of “%s”"), i18n("Could not open the console of “%s”")],
        log: [i18n("Show Log"), i18n("Show the log of “%s”"), i18n("Could not show the log of “%s”")]
    };
    const [label, spoken, failure] = all[verb];
    return {label: label, spoken: filled(spoken, name), failure: filled(failure, name)};
}

// The title of a notification; what: see Logic.news.
function happened(what, item) {
    switch (what) {
    case "failed":
        return filled(item.state === "unavailable" ? i18n("“%s” is unavailable") : i18n("“%s” failed"), item.name);
    case "degraded":
        return filled(i18n("“%s” lost a share"), item.name);
    default:
        return filled(i18n("“%s” works again"), item.name);
    }
}

// What is under the pointer over the icon.
function summary(items) {
    const own = items.filter(Logic.isOwn);
    const broken = own.filter(Logic.isBroken).map(item => happened(item.degraded && item.state !== "failed" ? "degraded" : "failed", item));
    const running = own.filter(item => item.kind === "machine" && Logic.isRunning(item)).length;
    const shared = own.filter(item => item.kind === "share" && item.state !== "stopped").length;
    if (running) {
        broken.push(filled(i18np("%d running", "%d running", running), running));
    }
    if (shared) {
        broken.push(filled(i18np("%d shared folder", "%d shared folders", shared), shared));
    }
    return broken.length ? broken.join("\n") : i18n("Nothing runs");
}
