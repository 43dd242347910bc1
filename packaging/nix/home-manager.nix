# services.vfsd for Home Manager: a user's own vfsd and machines. It needs nothing of the system's configuration.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.vfsd;
  vfsd = import ./options.nix { inherit lib; };
  checked = import ./checks.nix {
    inherit lib;
    scope = "user";
  } cfg;
  # vfsd that does not run reads its files when it is started
  onChange = "${lib.getExe' cfg.package "vfsctl"} --user reload || true";
  unit = name: { source = "${cfg.package}/lib/systemd/user/${name}"; };
in
{
  options.services.vfsd = vfsd.declared // {
    enable = lib.mkEnableOption "vfsd, the user's own virtio-fs shares and virtual machines";
    package = lib.mkPackageOption pkgs "vfsd" { };
  };

  config = lib.mkIf cfg.enable {
    inherit (checked) assertions warnings;

    home.packages = [ cfg.package ];

    xdg.configFile =
      lib.mapAttrs (_: source: { inherit source onChange; }) (vfsd.files (pkgs.formats.toml { }) cfg)
      // {
        "systemd/user/vfsd.service" = unit "vfsd.service";
        "systemd/user/vfsd.slice" = unit "vfsd.slice";
        "systemd/user/default.target.wants/vfsd.service" = unit "vfsd.service";
      };

    # so that vfsd is there for whoever calls it first
    dbus.packages = [ cfg.package ];
  };
}
