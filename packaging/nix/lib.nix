# Functions for configurations; they need no nixpkgs.
{
  # A NixOS system as a machine of vfsd's, that is as a value of services.vfsd.machines: its kernel, initial RAM file
  # system and init, and the host's /nix/store, read-only, over virtio-fs. Nothing is copied, and no image is made.
  #
  # The argument is what lib.nixosSystem returns. It gets the guest module, and a root file system in memory.
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
      failed = map (rule: rule.message) (builtins.filter (rule: !rule.assertion) config.assertions);
      # toplevel says the same, but only when it is built
      sound =
        if failed == [ ] then
          config
        else
          throw "This NixOS system can't be a machine of vfsd:\n${builtins.concatStringsSep "\n" (map (it: "- ${it}") failed)}";
    in
    {
      kernel = "${sound.system.build.kernel}/${config.system.boot.loader.kernelFile}";
      initrd = "${build.initialRamdisk}/${config.system.boot.loader.initrdFile}";
      append = builtins.concatStringsSep " " ([ "init=${build.toplevel}/init" ] ++ config.boot.kernelParams);
      shares.nix-store = {
        source = builtins.storeDir;
        readOnly = true;
      };
    };
}
