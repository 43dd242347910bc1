# vfsd: `make help` lists what can be made.

SHELL = /bin/bash
.SHELLFLAGS = -euo pipefail -c
.DEFAULT_GOAL = help
.PHONY: help demo test test-desktop lint bench lab-shell install uninstall clean each-file bundle dist-gnome dist-kde dist-pypi manual

DESTDIR =
PREFIX = /usr
BINDIR = $(PREFIX)/bin
# Private, so that it depends on no particular version of Python.
LIBDIR = $(PREFIX)/lib/vfsd
SHARE = $(PREFIX)/share
SYSTEMD = $(PREFIX)/lib/systemd
GNOME_EXTENSION = $(SHARE)/gnome-shell/extensions/vfsd@vfsd1.org
PYTHON = python3
# "bundled" brings the pinned qemu.qmp along, "system" uses the one that Python has anyway.
WITH_QMP = bundled
VFSD_LAB_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vfsd-lab
export VFSD_LAB_CACHE

LAB = $(PYTHON) -B -m tests.lab
# What to test, and further arguments of pytest: make test TESTS=tests/unit/test_x.py ARGS='-k word -x'
TESTS = tests
ARGS =

help: ## Show this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20
	@echo "Variables: DESTDIR PREFIX WITH_QMP=system for install; TESTS= ARGS= for test"

demo: ## Show what vfsd does, in a lab of its own
	@tests/lab/prepare
	@$(LAB) run -- /usr/src/vfsd/tests/lab/demo

test: ## Install into a fresh lab and test there: TESTS=tests/unit/test_x.py ARGS='-k word'
	@tests/lab/prepare
	@$(LAB) run -- /usr/src/vfsd/tests/lab/run-tests $(ARGS) $(TESTS)

test-desktop: ## Test in the real GNOME Shell and Plasma, in a lab of their own; pictures in build/screenshots
	@tests/lab/prepare
	@PYTHON=$(PYTHON) applets/lint/fetch-shexli build/shexli
	@$(LAB) run --desktop --fetch /tmp/screenshots:build/screenshots -- \
		/usr/src/vfsd/tests/lab/run-tests $(ARGS) $(or $(DESKTOP_TESTS),tests/desktop)

lint: ## Check style and types with the pinned ruff, mypy and ESLint
	@tests/lab/prepare npm
	@PYTHON=$(PYTHON) tests/lab/lint
	@applets/lint/run

bench: ## Measure in a fresh lab; results in build/bench.json
	@tests/lab/prepare
	@$(LAB) run --fetch /tmp/bench.json:build/bench.json -- /usr/src/vfsd/tests/bench/run

dist-kde: ## The Plasma applet as a package: dist/org.vfsd1.plasma.plasmoid
	@eval "$$FUNCTIONS"; shopt -s nullglob; \
	rm -rf build/plasmoid dist/org.vfsd1.plasma.plasmoid; mkdir -p dist; \
	ACTION=install; put_plasmoid "$(CURDIR)/build/plasmoid"; \
	put 644 "$(CURDIR)/build/plasmoid/contents/icons" applets/icons/*-symbolic.svg; \
	cd build/plasmoid; $(PYTHON) -m zipfile -c ../../dist/org.vfsd1.plasma.plasmoid *

dist-pypi: ## The source distribution and the wheel for PyPI, in dist/ (needs setuptools and wheel)
	@mkdir -p build dist
	@$(PYTHON) -c 'from setuptools import build_meta; build_meta.build_sdist("dist"); build_meta.build_wheel("dist")' \
		>build/pypi.log 2>&1 || { tail -n 5 build/pypi.log >&2; echo "Are setuptools and wheel there, for $(PYTHON)?" >&2; exit 1; }
	@rm -rf build/lib build/bdist.* vfsd.egg-info

manual: ## Write org.vfsd1(5) anew from what it is made of: the interfaces, the errors and the journal's catalog
	@$(PYTHON) -B packaging/manual/generate

lab-shell: ## A root shell in a fresh lab with vfsd installed
	@tests/lab/prepare
	@$(LAB) shell

clean: ## Remove what was built in this folder
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- install and uninstall walk over the same list of files, so they cannot drift apart ---

# put MODE FOLDER FILE…: a file that does not exist is passed over; NAME.in becomes NAME.
# put_as MODE TARGET FILE: the same under another name.
define FUNCTIONS
put_as() {
	source=$$3; target="$(DESTDIR)$$2"
	if [ ! -f "$$source" ] && [ -f "$$source.in" ]; then source=$$source.in; fi
	if [ ! -f "$$source" ]; then return; fi
	if [ "$$ACTION" = remove ]; then rm -f "$$target"; return; fi
	case $$source in
	*.in)
		install -d "$${target%/*}"
		sed -e 's|@PREFIX@|$(PREFIX)|g; s|@BINDIR@|$(BINDIR)|g; s|@LIBDIR@|$(LIBDIR)|g' \
			-e "s|@MODULE@|$${module-}|g" "$$source" >"$$target"
		chmod "$$1" "$$target" ;;
	*.po | *.desktop | *.metainfo.xml) put_translated "$$@" ;;
	*) install -D -m "$$1" "$$source" "$$target" ;;
	esac
}
# A catalogue is compiled, and what has texts of its own gets all translations of them. Without gettext it stays English.
put_translated() {
	case $$(command -v msgfmt):$$source in
	:*.po) return ;;
	:*) install -D -m "$$1" "$$source" "$$target"; return ;;
	*.po) from=$$source ;;
	*.desktop) from="--desktop --template=$$source -d applets/po" ;;
	*) from="--xml --template=$$source -d applets/po" ;;
	esac
	install -d "$${target%/*}"
	msgfmt $$from --output-file=- >"$$target"
	chmod "$$1" "$$target"
}
put() {
	mode=$$1; folder=$$2; shift 2
	for file; do name=$${file##*/}; put_as "$$mode" "$$folder/$${name%.in}" "$$file"; done
}
# put_plasmoid FOLDER: the Plasma applet.
put_plasmoid() {
	for file in $$(cd applets/kde && find . -type f); do put_as 644 "$$1/$${file#./}" "applets/kde/$$file"; done
	for po in applets/po/*.po; do
		language=$${po##*/}
		put_as 644 "$$1/contents/locale/$${language%.po}/LC_MESSAGES/plasma_applet_org.vfsd1.plasma.mo" "$$po"
	done
	if [ "$$ACTION" = remove ]; then find "$(DESTDIR)$$1" -type d -empty -delete 2>/dev/null || true; fi
}
endef
export FUNCTIONS

each-file:
	@eval "$$FUNCTIONS"; shopt -s nullglob; \
	module=vfsd.service; put_as 755 $(BINDIR)/vfsd packaging/launcher.in; \
	module=vfsd.cli.main; put_as 755 $(BINDIR)/vfsctl packaging/launcher.in; \
	put 644 $(SHARE)/dbus-1/interfaces dbus/*.xml; \
	put_as 644 $(SHARE)/dbus-1/system-services/org.vfsd1.service dbus/org.vfsd1.system.service; \
	put_as 644 $(SHARE)/dbus-1/services/org.vfsd1.service dbus/org.vfsd1.session.service; \
	put_as 644 $(SHARE)/dbus-1/system.d/org.vfsd1.conf dbus/org.vfsd1.conf; \
	put 644 $(SHARE)/polkit-1/actions dbus/*.policy dbus/*.policy.in; \
	put 644 $(SHARE)/doc/vfsd/examples packaging/polkit/*.example; \
	put 644 $(SYSTEMD)/system units/system/*; \
	put 644 $(SYSTEMD)/user units/user/*; \
	put_as 644 $(SYSTEMD)/catalog/vfsd.catalog units/vfsd.catalog; \
	for page in packaging/man/*.[1-8] packaging/man/*.[1-8].in; do \
		plain=$${page%.in}; put 644 $(SHARE)/man/man$${plain##*.} "$$page"; \
	done; \
	put_as 644 $(SHARE)/bash-completion/completions/vfsctl packaging/completions/vfsctl.bash; \
	put_as 644 $(SHARE)/zsh/site-functions/_vfsctl packaging/completions/vfsctl.zsh; \
	put_as 644 $(SHARE)/fish/vendor_completions.d/vfsctl.fish packaging/completions/vfsctl.fish; \
	put 644 $(SHARE)/icons/hicolor/scalable/apps applets/icons/org.vfsd1.vfsd.svg; \
	put 644 $(SHARE)/icons/hicolor/symbolic/apps applets/icons/*-symbolic.svg; \
	put 644 $(SHARE)/applications applets/*.desktop; \
	put 644 $(SHARE)/metainfo applets/*.metainfo.xml; \
	for language in $$(cat applets/po/LINGUAS); do \
		put_as 644 $(SHARE)/locale/$$language/LC_MESSAGES/vfsd.mo applets/po/$$language.po; \
	done; \
	put 644 $(GNOME_EXTENSION) applets/gnome/*.js applets/gnome/*.css applets/gnome/metadata.json; \
	put 644 $(GNOME_EXTENSION)/icons applets/icons/*-symbolic.svg; \
	put 644 $(SHARE)/glib-2.0/schemas applets/gnome/schemas/*.xml; \
	put_plasmoid $(SHARE)/plasma/plasmoids/org.vfsd1.plasma; \
	put 644 $(SHARE)/knotifications6 applets/vfsd.notifyrc

install: ## Install below DESTDIR, under PREFIX
	@if [ $(WITH_QMP) != system ]; then $(MAKE) --no-print-directory bundle; fi
	@rm -rf "$(DESTDIR)$(LIBDIR)"
	@cd "$(CURDIR)" && find vfsd -type f ! -path '*/__pycache__/*' ! -path 'vfsd/libexec/*' \
		-exec sh -c 'for f; do install -D -m 644 "$$f" "$(DESTDIR)$(LIBDIR)/$$f"; done' sh {} +
	@eval "$$FUNCTIONS"; shopt -s nullglob; ACTION=install; \
		put 755 $(LIBDIR)/libexec vfsd/libexec/*
	@ACTION=install $(MAKE) --no-print-directory each-file
	@touch "$(DESTDIR)$(SHARE)/icons/hicolor" # a cache of its icons that is older than the folder is not believed
	@if [ $(WITH_QMP) != system ]; then \
		install -d "$(DESTDIR)$(LIBDIR)/bundled"; \
		$(PYTHON) -m zipfile -e "$(QMP_WHEEL)" "$(DESTDIR)$(LIBDIR)/bundled"; \
		install -m 644 "$(DESTDIR)$(LIBDIR)/bundled"/*.dist-info/licenses/* \
			"$(DESTDIR)$(LIBDIR)/bundled/qemu/qmp"; \
		rm -r "$(DESTDIR)$(LIBDIR)/bundled"/*.dist-info; \
	fi
	@if [ -z "$(DESTDIR)" ]; then /usr/bin/python3 -m compileall -q "$(LIBDIR)"; fi
	@$(COMPILE_SCHEMAS)

uninstall: ## Remove what install has put there
	@ACTION=remove $(MAKE) --no-print-directory each-file
	rm -rf "$(DESTDIR)$(LIBDIR)" "$(DESTDIR)$(GNOME_EXTENSION)"
	@$(COMPILE_SCHEMAS)

# A package has its package manager do this.
COMPILE_SCHEMAS = if [ -z "$(DESTDIR)" ] && [ -d "$(SHARE)/glib-2.0/schemas" ] && command -v glib-compile-schemas >/dev/null; then \
	glib-compile-schemas "$(SHARE)/glib-2.0/schemas"; fi

# --- packages of distributions ---

.PHONY: deb rpm arch
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
DIST = dist
DEB_BUILD = build/deb
# What a package is made of: the tree without what other tools have left in it; and the wheel, where nobody else brings it.
COPY_TREE = rm -rf "$1"; mkdir -p "$1/wheels" "$(DIST)"; \
	tar -c --exclude=__pycache__ --exclude=node_modules Makefile pyproject.toml LICENSE README.md NEWS.md docs dbus units vfsd \
		applets packaging | tar -x -C "$1"
COPY_WHEEL = cp "$(QMP_WHEEL)" "$1/wheels"

deb: bundle ## Build vfsd, vfsd-gnome and vfsd-plasma as packages of Debian, into dist/
	@$(call COPY_TREE,$(DEB_BUILD)/vfsd); $(call COPY_WHEEL,$(DEB_BUILD)/vfsd)
	@cd "$(DEB_BUILD)/vfsd" && mv packaging/debian . && \
		sed -e 's/@VERSION@/$(VERSION)/' \
			-e "s/@DATE@/$$(date -R -u -d "@$${SOURCE_DATE_EPOCH:-$$(stat -c %Y NEWS.md)}")/" \
			debian/changelog.in >debian/changelog && \
		dpkg-checkbuilddeps -I && env -u MAKEFLAGS -u MAKELEVEL dpkg-buildpackage -d -b -us -uc
	@cp "$(DEB_BUILD)"/*.deb "$(DEB_BUILD)"/*.changes "$(DEB_BUILD)"/*.buildinfo "$(DIST)"

RPM_BUILD = build/rpm
# What rpmbuild is asked besides: on Debian, say, --nodeps, since it knows no package there.
RPM_OPTIONS =

rpm: ## Build the same for Fedora, into dist/
	@$(call COPY_TREE,$(RPM_BUILD)/vfsd-$(VERSION))
	@tar -C "$(RPM_BUILD)" -czf "$(RPM_BUILD)/vfsd-$(VERSION).tar.gz" "vfsd-$(VERSION)"
	@env -u MAKEFLAGS -u MAKELEVEL rpmbuild -bb $(RPM_OPTIONS) --define "_topdir $(abspath $(RPM_BUILD))" \
		--define "_sourcedir $(abspath $(RPM_BUILD))" --define "vfsd_version $(VERSION)" packaging/rpm/vfsd.spec
	@cp "$(RPM_BUILD)"/RPMS/noarch/*.rpm "$(DIST)"

ARCH_BUILD = build/arch

arch: bundle ## Put together what makepkg builds the same from, for Arch, into dist/arch/
	@$(call COPY_TREE,$(ARCH_BUILD)/vfsd-$(VERSION)); $(call COPY_WHEEL,$(ARCH_BUILD)/vfsd-$(VERSION))
	@mkdir -p "$(DIST)/arch"
	@tar -C "$(ARCH_BUILD)" -czf "$(DIST)/arch/vfsd-$(VERSION).tar.gz" "vfsd-$(VERSION)"
	@sed -e 's/@VERSION@/$(VERSION)/' packaging/arch/PKGBUILD >"$(DIST)/arch/PKGBUILD"
	@cp packaging/arch/vfsd.install "$(DIST)/arch"

dist-gnome: ## Make the zip for the site of GNOME Shell's extensions, in dist/
	@$(PYTHON) -B applets/gnome/pack dist/vfsd@vfsd1.org.shell-extension.zip

# --- the wheel of qemu.qmp: fetched once, compared with its hash each time ---

REQUIREMENT = packaging/bundled-requirements.txt
QMP_VERSION = $(shell sed -n 's/^qemu.qmp==\([0-9.]*\) .*/\1/p' $(REQUIREMENT))
QMP_SHA256 = $(shell sed -n 's/^qemu.qmp==.*sha256://p' $(REQUIREMENT))
WHEELS = $(VFSD_LAB_CACHE)/wheels
QMP_WHEEL = $(WHEELS)/qemu_qmp-$(QMP_VERSION)-py3-none-any.whl

bundle:
	@verify() { echo "$(QMP_SHA256)  $(QMP_WHEEL)" | sha256sum --check --status; }; \
	if ! { [ -f "$(QMP_WHEEL)" ] && verify; }; then \
		rm -f "$(QMP_WHEEL)"; \
		$(PYTHON) -m pip --quiet --disable-pip-version-check download --no-deps --require-hashes \
			--dest "$(WHEELS)" --requirement $(REQUIREMENT); \
		verify; \
	fi
