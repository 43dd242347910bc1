# Stand-ins for the options of NixOS and Home Manager that packaging/nix defines, and for nothing else: what is misspelt
# is an error.
{ lib, pkgs }:
let
  inherit (lib) mkOption types;
  option =
    type: default:
    mkOption {
      inherit type default;
      description = "";
    };
  file = types.submodule {
    options = {
      source = mkOption {
        type = types.path;
        description = "";
      };
      onChange = option types.str "";
    };
  };
  common = {
    assertions = option (types.listOf types.unspecified) [ ];
    warnings = option (types.listOf types.str) [ ];
  };
in
{
  host.options = common // {
    environment.systemPackages = option (types.listOf types.package) [ ];
    environment.etc = option (types.attrsOf file) { };
    systemd.packages = option (types.listOf types.package) [ ];
    systemd.services = option (types.attrsOf (
      types.submodule {
        options = {
          wantedBy = option (types.listOf types.str) [ ];
          reloadTriggers = option (types.listOf types.unspecified) [ ];
          serviceConfig = option (types.attrsOf types.str) { };
        };
      }
    )) { };
    services.dbus.packages = option (types.listOf types.package) [ ];
    security.polkit.enable = option types.bool false;
    security.polkit.extraConfig = option types.lines "";
    users.groups = option (types.attrsOf (types.submodule { options = { }; })) { };
  };

  home.options = common // {
    home.packages = option (types.listOf types.package) [ ];
    xdg.configFile = option (types.attrsOf file) { };
    dbus.packages = option (types.listOf types.package) [ ];
  };

  guest =
    { config, ... }:
    let
      failed = map (rule: rule.message) (lib.filter (rule: !rule.assertion) config.assertions);
    in
    {
      options = common // {
        networking.hostName = option types.str "nixos";
        system.stateVersion = option types.str "";
        boot.initrd.availableKernelModules = option (types.listOf types.str) [ "ahci" ];
        boot.kernelParams = option (types.listOf types.str) [ ];
        boot.initrd.luks.devices = option (types.attrsOf types.raw) { };
        boot.loader.grub.enable = option types.bool true;
        boot.kernelPackages = option types.raw { kernel = pkgs.linux; };
        services.qemuGuest.enable = option types.bool false;
        swapDevices = option (types.listOf types.raw) [ ];
        fileSystems = option (types.attrsOf (
          types.submodule {
            options = {
              device = option types.str "";
              fsType = option types.str "auto";
              options = option (types.listOf types.str) [ ];
              neededForBoot = option types.bool false;
            };
          }
        )) { };
        system.boot.loader.kernelFile = option types.str "bzImage";
        system.boot.loader.initrdFile = option types.str "initrd";
        system.build = option (types.attrsOf types.raw) { };
      };
      config.boot.kernelParams = [ "loglevel=4" ];
      config.system.build = {
        inherit (config.boot.kernelPackages) kernel;
        initialRamdisk = "/nix/store/initrd";
        # as NixOS does, when it is evaluated; of the assertions that it has itself, for a root file system
        toplevel =
          if failed == [ ] && config.fileSystems ? "/" then
            "/nix/store/toplevel-${config.networking.hostName}"
          else
            throw "Failed assertions: ${lib.concatStringsSep "; " failed}";
      };
    };
}
