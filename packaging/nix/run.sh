# What `nix run` runs: vfsctl run --builtin. Where vfsd is not installed, one is started for as long as that takes.
manager=--user
[ "$(id -u)" != 0 ] || manager=--system
if ! busctl "$manager" --acquired --activatable --no-legend list | grep "^org\.vfsd1 " >/dev/null; then
    if [ "$manager" = --system ]; then
        echo "vfsd is not installed, and on the system bus only what is installed may serve. Run this as a user," >&2
        echo "or install vfsd first (NixOS: services.vfsd.enable = true)." >&2
        exit 1
    fi
    unit=vfsd-for-nix-run.service
    systemd-run "$manager" --quiet --collect --unit="$unit" --service-type=notify \
        "$(command -v vfsd)" "$manager"
    trap 'systemctl "$manager" stop "$unit"' EXIT
fi
vfsctl "$manager" run --builtin "$@"
