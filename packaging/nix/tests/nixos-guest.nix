# A NixOS system as a machine, whose /nix/store is the host's.
self:
{ pkgs, lib, ... }:
let
  guest = import (pkgs.path + "/nixos/lib/eval-config.nix") {
    inherit (pkgs.stdenv.hostPlatform) system;
    modules = [
      {
        networking.hostName = "guest";
        system.stateVersion = lib.trivial.release;
      }
    ];
  };
in
{
  name = "vfsd-nixos-guest";

  nodes.host = {
    imports = [ self.nixosModules.vfsd ];
    virtualisation.memorySize = 4096;

    systemd.tmpfiles.rules = [ "d /srv/data 0755 root root" ];
    # whose definition brings the guest's system into the host's store
    services.vfsd = {
      enable = true;
      machines.guest = lib.mkMerge [
        (self.lib.machineFromNixos guest)
        {
          memory = "1G";
          shares.data = {
            source = "/srv/data";
            mountPoint = "/data";
          };
        }
      ];
    };
  };

  # </dev/null: what reads its standard input would swallow the test driver's next command
  testScript = ''
    host.wait_for_unit("vfsd.service")
    host.succeed("vfsctl machine start guest")
    host.wait_until_succeeds("</dev/null vfsctl exec guest -- /run/current-system/sw/bin/true", timeout=900)

    with subtest("The store is the host's, and stays as it is"):
        host.succeed("</dev/null vfsctl exec guest -- /run/current-system/sw/bin/findmnt -t virtiofs /nix/store")
        host.fail("</dev/null vfsctl exec guest -- /run/current-system/sw/bin/touch /nix/store/written")

    with subtest("A share is mounted that the guest's configuration knows nothing of"):
        host.succeed("</dev/null vfsctl exec guest -- /run/current-system/sw/bin/touch /data/from-the-guest")
        host.succeed("test -e /srv/data/from-the-guest")

    host.succeed("vfsctl machine shutdown guest")
  '';
}
