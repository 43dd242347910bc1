# services.vfsd: the system's vfsd, and the shares and machines that are declared for it. docs/nixos.md has examples.
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
    scope = "system";
  } cfg;
  files = vfsd.files (pkgs.formats.toml { }) cfg;
in
{
  options.services.vfsd = vfsd.declared // {
    enable = lib.mkEnableOption "vfsd, virtio-fs shares and virtual machines as systemd units, for root and for each user";
    package = lib.mkPackageOption pkgs "vfsd" { };
    group = lib.mkOption {
      type = lib.types.nullOr (lib.types.strMatching "[a-z_][a-z0-9_-]{0,30}");
      default = null;
      example = "vfsd";
      description = ''
        A group whose members may manage all shares and machines of the system without being asked for a password.
        That makes them as good as root: anything can be shared. Without it polkit asks for an administrator's.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    inherit (checked) assertions warnings;

    environment.systemPackages = [ cfg.package ];
    environment.etc = lib.mapAttrs (_: source: { inherit source; }) files;
    systemd.packages = [ cfg.package ];
    services.dbus.packages = [ cfg.package ];

    # NixOS ignores [Install] of units that come with packages. A share or machine that runs is never touched by a new
    # definition; that vfsd itself is restarted by a new package stops none either.
    systemd.services.vfsd = {
      wantedBy = [ "multi-user.target" ];
      reloadTriggers = lib.attrValues files;
      serviceConfig.ExecReload = "${lib.getExe' cfg.package "vfsctl"} --system reload";
    };

    security.polkit.enable = lib.mkDefault true;
    security.polkit.extraConfig = lib.mkIf (cfg.group != null) ''
      // Members of the group may do everything with vfsd.
      polkit.addRule(function(action, subject) {
          if (action.id.indexOf("org.vfsd1.") === 0 && subject.isInGroup("${cfg.group}")) {
              return polkit.Result.YES;
          }
      });
    '';
    users.groups = lib.mkIf (cfg.group != null) { ${cfg.group} = { }; };
  };
}
