# Functions for configurations; they need no nixpkgs.
{
  # A NixOS system as a machine of vfsd's, that is as a value of services.vfsd.machines: its kernel, initial RAM file
  # system and init, and the host's /nix/store, read-only, over virtio-fs. Nothing is copied, and no image is made.
  #
  # The argument is what lib.nixosSystem returns. It gets the guest module, and a root file system in memory. What its
  # assertions say against that is said when `toplevel` is evaluated.
  machineFromNixos =
    nixosConfiguration:
    let
      inherit
        (nixosConfiguration.extendModules {
          modules = [
            ./guest.nix
            { vfsd.guest.store = true; }
          ];
        })
        config
        ;
      inherit (config.system) build;
    in
    {
      kernel = "${build.kernel}/${config.system.boot.loader.kernelFile}";
      initrd = "${build.initialRamdisk}/${config.system.boot.loader.initrdFile}";
      append = builtins.concatStringsSep " " ([ "init=${build.toplevel}/init" ] ++ config.boot.kernelParams);
      shares.nix-store = {
        source = builtins.storeDir;
        readOnly = true;
      };
    };
}
