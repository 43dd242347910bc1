# What a NixOS system needs to be vfsd's guest. Shares with a mountPoint on the host need nothing here: vfsd tells the
# guest's systemd. vfsd.guest.shares are for what must be there earlier, and for guests that boot from an image.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.vfsd.guest;
  inherit (lib) any elem mkOption types;
  inherit (config.boot.kernelPackages) kernel;
  flag =
    default: description:
    mkOption {
      type = types.bool;
      inherit default description;
    };

  # nixpkgs' own kernels have all drivers, unless somebody takes one out; others tell their configuration.
  has =
    driver:
    let
      wanted = kernel.structuredExtraConfig.${driver} or { };
    in
    if wanted.tristate or null == "n" then
      false
    else if kernel ? features then
      true
    else if kernel.config or { } ? isEnabled then
      kernel.config.isEnabled driver
    else
      true;

  mountPoints = lib.mapAttrsToList (_: share: toString share.mountPoint) cfg.shares;

  # What a boot waits for and then fails without. The disks of an image that a machine has besides are /dev/vda and on.
  isMissing =
    { device, fsType, options, ... }:
    let
      text = toString device;
      mayBeMissing = any (option: elem option options) [ "nofail" "noauto" ];
      ofMachine = any (prefix: lib.hasPrefix prefix text) [ "/dev/vd" "/dev/disk/by-id/virtio-" ];
    in
    (lib.hasPrefix "/dev/" text || fsType == "zfs") && !(mayBeMissing || ofMachine);
in
{
  options.vfsd.guest = {
    enable = lib.mkEnableOption "what a guest of vfsd needs" // {
      default = true;
    };
    agent = flag true "Whether QEMU's guest agent runs, by which vfsd heals shares, mounts new ones and runs commands.";
    store = flag false ''
      Whether /nix/store is the host's, the root file system lies in memory, and there are no disks.
      `vfsd.lib.machineFromNixos` sets it.
    '';
    shares = mkOption {
      type = types.attrsOf (
        types.submodule (
          { name, ... }:
          {
            options = {
              tag = mkOption {
                type = types.str;
                default = name;
                defaultText = lib.literalMD "the attribute's name";
                description = "The share's tag on the host.";
              };
              mountPoint = mkOption {
                type = types.path;
                example = "/mnt/src";
                description = "Where it is mounted.";
              };
              readOnly = flag false "Whether it is mounted read-only.";
              neededForBoot = flag false "Whether it is mounted before the system starts.";
              options = mkOption {
                type = types.listOf types.str;
                default = [ ];
                example = [ "nofail" ];
                description = "Further options of the mount.";
              };
            };
          }
        )
      );
      default = { };
      description = "Shares that this system mounts by itself.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions =
      map
        (driver: {
          assertion = has driver;
          message = "The kernel of this guest of vfsd has no ${driver} (CONFIG_${driver}); use one that has, such as pkgs.linuxPackages.";
        })
        [
          "VIRTIO_FS"
          "VIRTIO_PCI"
        ]
      ++ lib.mapAttrsToList (name: share: {
        assertion = lib.stringLength share.tag >= 1 && lib.stringLength share.tag <= 36;
        message = "vfsd.guest.shares.${name} has the tag \"${share.tag}\"; a tag has 1 to 36 bytes.";
      }) cfg.shares
      ++ [
        {
          assertion = lib.unique mountPoints == mountPoints;
          message = "vfsd.guest.shares has two shares with one mount point; give each its own.";
        }
      ]
      ++ lib.optionals cfg.store (
        lib.mapAttrsToList (where: mount: {
          assertion = !isMissing mount;
          message = "fileSystems.\"${where}\" is on ${toString mount.device}, and this guest of vfsd has no such disk; leave it out, or give it the option nofail.";
        }) config.fileSystems
      );

    boot.initrd.availableKernelModules = [
      "virtiofs"
      "virtio_pci"
      "virtio_console"
      "virtio_net"
    ];
    boot.kernelParams = [ "console=${if pkgs.stdenv.hostPlatform.isAarch64 then "ttyAMA0" else "ttyS0"}" ];
    boot.loader.grub.enable = lib.mkIf cfg.store (lib.mkDefault false);
    # the host's disks are not there
    boot.initrd.luks.devices = lib.mkIf cfg.store (lib.mkForce { });
    swapDevices = lib.mkIf cfg.store (lib.mkForce [ ]);
    services.qemuGuest.enable = lib.mkIf cfg.agent (lib.mkDefault true);

    vfsd.guest.shares.nix-store = lib.mkIf cfg.store {
      mountPoint = "/nix/store";
      readOnly = true;
      neededForBoot = true;
    };

    fileSystems = lib.mkMerge [
      (lib.mapAttrs' (_: share: {
        name = share.mountPoint;
        value = {
          device = share.tag;
          fsType = "virtiofs";
          options = lib.optional share.readOnly "ro" ++ share.options;
          inherit (share) neededForBoot;
        };
      }) cfg.shares)
      (lib.mkIf cfg.store {
        "/" = {
          device = lib.mkForce "tmpfs";
          fsType = lib.mkForce "tmpfs";
          options = lib.mkForce [ "mode=0755" ];
        };
      })
    ];
  };
}
