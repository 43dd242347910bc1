{
  description = "virtio-fs shares and their QEMU machines as transient systemd units, over D-Bus";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      each = lib.genAttrs [
        "aarch64-linux"
        "x86_64-linux"
      ];
      packagesOf = system: nixpkgs.legacyPackages.${system}.extend self.overlays.default;
      # The modules use the package of this flake, whatever overlays a configuration has.
      withPackage =
        module:
        { pkgs, ... }:
        {
          imports = [ module ];
          services.vfsd.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.vfsd;
        };
    in
    {
      overlays.default = final: _: { vfsd = final.callPackage ./packaging/nix/package.nix { }; };

      packages = each (system: {
        inherit (packagesOf system) vfsd;
        default = self.packages.${system}.vfsd;
      });

      apps = each (system: {
        default = {
          type = "app";
          program = lib.getExe (
            (packagesOf system).writeShellApplication {
              name = "vfsd-run";
              runtimeInputs = [
                self.packages.${system}.vfsd
                (packagesOf system).gnugrep
                (packagesOf system).systemd
              ];
              text = builtins.readFile ./packaging/nix/run.sh;
            }
          );
          meta.description = "Boot the built-in guest on this terminal: vfsctl run --builtin";
        };
        vfsctl = {
          type = "app";
          program = lib.getExe' self.packages.${system}.vfsd "vfsctl";
          meta.description = "Shares and machines on the command line";
        };
      });

      nixosModules = {
        default = self.nixosModules.vfsd;
        vfsd = withPackage ./packaging/nix/module.nix;
        guest.imports = [ ./packaging/nix/guest.nix ];
      };

      homeModules = {
        default = self.homeModules.vfsd;
        vfsd = withPackage ./packaging/nix/home-manager.nix;
      };
      # its older name
      homeManagerModules = self.homeModules;

      lib = import ./packaging/nix/lib.nix;

      checks = each (system: {
        package = self.packages.${system}.vfsd;
        inherit (self.packages.${system}.vfsd.tests) nixos-guest shares version;
      });

      devShells = each (
        system:
        let
          pkgs = packagesOf system;
        in
        {
          default = pkgs.mkShell {
            packages = [
              pkgs.gettext
              pkgs.mandoc
              pkgs.mypy
              pkgs.qemu
              pkgs.ruff
              pkgs.virtiofsd
              (pkgs.python3.withPackages (modules: [
                modules.click
                modules.dbus-next
                modules.hypothesis
                modules.pyudev
                modules.pytest
                modules.pytest-asyncio
                modules.qemu-qmp
                modules.rich
                modules.systemd-python
              ]))
            ];
          };
        }
      );
    };
}
