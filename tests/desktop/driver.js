// What the tests need inside GNOME Shell, evaluated there once: an object with a virtual pointer and keyboard.
(() => {
    const {Clutter, GLib, St} = imports.gi;
    const seat = global.stage.context.get_backend().get_default_seat();
    const pointer = seat.create_virtual_device(Clutter.InputDeviceType.POINTER_DEVICE);
    const keyboard = seat.create_virtual_device(Clutter.InputDeviceType.KEYBOARD_DEVICE);
    const now = () => GLib.get_monotonic_time();
    const sleep = ms => new Promise(resolve => GLib.timeout_add(GLib.PRIORITY_DEFAULT, ms, () => resolve() ?? false));
    const PAUSE = 15;

    const nameOf = actor => actor?.get_accessible?.()?.get_name() || actor?.label_actor?.text || '';
    const isShown = actor => actor.mapped && actor.get_paint_opacity() > 0;

    function* within(actor) {
        yield actor;
        for (const child of actor.get_children())
            yield* within(child);
    }

    // by its whole accessible name, or, if it ends with a comma, by how that begins
    function find(name, part = global.stage) {
        const matches = text => name.endsWith(',') ? text.startsWith(name) : text === name;
        return [...within(part)].filter(actor => actor.reactive && isShown(actor) && matches(nameOf(actor))).at(-1) ?? null;
    }

    // until(condition) fails rather than waits for ever
    async function until(condition, what, ms = 5000) {
        const end = now() + ms * 1000;
        for (;;) {
            const value = condition();
            if (value)
                return value;
            if (now() > end)
                throw new Error(`not within ${ms} ms: ${what}`);
            await sleep(8);
        }
    }

    const shell = {
        menuButton: 'Open the menu of machines',
        told: [], // titles of all notifications, those too that were replaced since
        sleep,
        until,
        within,
        nameOf,
        find,

        get quickSettings() {
            return Main.panel.statusArea.quickSettings;
        },

        get toggle() {
            return shell.quickSettings.menu._grid.get_children().find(item => item.has_style_class_name?.('vfsd-toggle')) ?? null;
        },

        row(name) {
            return find(`${name},`, shell.toggle.menu.actor);
        },

        rows() {
            return [...within(shell.toggle.menu.actor)].filter(actor => actor.mapped && actor.object);
        },

        scrollUp() {
            for (const list of [...within(shell.toggle.menu.actor)].filter(child => child instanceof St.ScrollView))
                list.vadjustment.value = 0;
        },

        // whether it is where the list shows it
        isInSight(actor) {
            const list = [...within(shell.toggle.menu.actor)].find(child => child instanceof St.ScrollView);
            const [, top] = list.get_transformed_position();
            const [, y] = actor.get_transformed_position();
            return y >= top - 1 && y + actor.height <= top + list.height + 1;
        },

        // what the row of a machine or share says
        said(name) {
            return nameOf(shell.row(name));
        },

        async openByPointer() {
            if (!shell.quickSettings.menu.isOpen)
                await shell.clickActor(shell.quickSettings);
            if (!shell.toggle.menu.isOpen)
                await shell.clickActor(await until(() => find(shell.menuButton), 'the button of the menu'));
            await until(() => shell.toggle.menu.isOpen, 'the menu is open');
        },

        async openByKeyboard() {
            // who has opened it by the pointer has the focus nowhere
            const focus = global.stage.get_key_focus();
            if (!focus || !shell.toggle.menu.actor.contains(focus)) {
                shell.close();
                await shell.keys('Super_L', 's');
                await until(() => find(shell.menuButton), 'the button of the menu');
                await shell.walk(shell.menuButton, 'Tab');
                await shell.keys('Return');
            }
            await until(() => shell.toggle.menu.isOpen, 'the menu is open');
        },

        async chooseByPointer(name, action) {
            await shell.openByPointer();
            const row = await until(() => shell.row(name), `the row of ${name}`);
            if (!row.menu.isOpen)
                await shell.clickActor(row);
            await shell.click(action);
            await until(() => !shell.toggle.menu.isOpen, `${action} is done, and the menu closed`);
        },

        async chooseByKeyboard(name, action) {
            await shell.openByKeyboard();
            await until(() => shell.row(name), `the row of ${name}`);
            await shell.walk(`${name},`);
            await shell.move('Right');
            await shell.walk(action);
            await shell.keys('Return');
            await until(() => !shell.toggle.menu.isOpen, `${action} is done, and the menu closed`);
        },

        window(title) {
            return global.get_window_actors().map(actor => actor.meta_window).find(window => window.title === title) ?? null;
        },

        close() {
            shell.quickSettings.menu.close(0);
            Main.panel.statusArea.dateMenu.menu.close(0);
            pointer.notify_absolute_motion(now(), 400, 600);
        },

        texts(actor) {
            return [...within(actor)].filter(child => child instanceof St.Label && isShown(child) && child.text)
                .map(child => child.text);
        },

        // the centre of an actor once it is where it stays
        async place(actor) {
            let old = '';
            for (let n = 0; n < 50; n++) {
                const [x, y] = actor.get_transformed_position();
                const [width, height] = actor.get_transformed_size();
                const place = `${x} ${y} ${width} ${height}`;
                if (place === old && width > 0)
                    return [x + width / 2, y + height / 2];
                old = place;
                await sleep(8);
            }
            throw new Error(`${nameOf(actor)} never comes to rest`);
        },

        async point(actor) {
            const [x, y] = await shell.place(actor);
            pointer.notify_absolute_motion(now(), x, y);
            await sleep(PAUSE);
            return [x, y];
        },

        async clickActor(actor) {
            await shell.clickAt(...await shell.point(actor));
        },

        async clickAt(x, y) {
            pointer.notify_absolute_motion(now(), x, y);
            await sleep(PAUSE);
            pointer.notify_button(now(), Clutter.BUTTON_PRIMARY, Clutter.ButtonState.PRESSED);
            await sleep(PAUSE);
            pointer.notify_button(now(), Clutter.BUTTON_PRIMARY, Clutter.ButtonState.RELEASED);
            await sleep(PAUSE);
        },

        async click(name) {
            await shell.clickActor(await until(() => find(name), `something to click named ${name}`));
        },

        async keys(...names) {
            const values = names.map(name => Clutter[`KEY_${name}`]);
            for (const value of values)
                keyboard.notify_keyval(now(), value, Clutter.KeyState.PRESSED);
            for (const value of values.reverse())
                keyboard.notify_keyval(now(), value, Clutter.KeyState.RELEASED);
            await sleep(PAUSE);
        },

        // presses a key that moves the focus, and waits until it has; else a slow shell has moved it too far once it is seen
        async move(key) {
            const focus = global.stage.get_key_focus();
            await shell.keys(key);
            for (let n = 0; n < 60 && global.stage.get_key_focus() === focus; n++)
                await sleep(5);
        },

        focus() {
            return nameOf(global.stage.get_key_focus());
        },

        // presses a key until something has the focus
        async walk(name, key = 'Down', presses = 120) {
            const seen = [];
            const matches = text => name.endsWith(',') ? text.startsWith(name) : text === name;
            for (let n = 0; n < presses; n++) {
                if (matches(shell.focus()))
                    return n;
                seen.push(shell.focus());
                await shell.move(key);
            }
            throw new Error(`${key} does not lead to ${name}, but to ${[...new Set(seen)]}`);
        },

        // our icon in the panel
        icon() {
            return [...within(shell.quickSettings._indicators)].find(actor => actor.gicon?.to_string().includes('org.vfsd1'));
        },

        notifications() {
            return Main.messageTray.getSources().filter(source => source.title === 'vfsd')
                .flatMap(source => source.notifications)
                .map(({title, body, actions}) => ({title, body, actions: actions.map(({_label}) => _label)}));
        },

        dismissAll() {
            for (const source of [...Main.messageTray.getSources()])
                source.destroy();
        },
    };
    Main.messageTray.connect('source-added', (_tray, source) =>
        source.connect('notification-added', (_source, {title}) => shell.told.push(title)));
    globalThis.shell = shell;
    return true;
})()
