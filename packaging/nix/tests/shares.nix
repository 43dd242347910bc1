# A host with declared machines: a directory is shared with the built-in guest, as root and as a user.
self:
{ pkgs, ... }:
{
  name = "vfsd-shares";

  nodes.host = {
    imports = [ self.nixosModules.vfsd ];
    virtualisation.memorySize = 2048;

    users.users.alice = {
      isNormalUser = true;
      linger = true;
    };
    systemd.tmpfiles.rules = [
      "d /srv/src 0755 root root"
      "f /srv/src/hello 0644 root root - from the host"
    ];
    services.vfsd = {
      enable = true;
      machines.declared = {
        builtin = true;
        memory = "256M";
        accelerator = "tcg";
        shares.src = {
          source = "/srv/src";
          mountPoint = "/mnt/src";
        };
      };
      shares.alone.source = "/srv/src";
    };
  };

  # </dev/null: what reads its standard input would swallow the test driver's next command
  testScript = ''
    host.wait_for_unit("vfsd.service")

    with subtest("What is declared is there"):
        host.succeed("vfsctl status | grep -w declared")
        host.succeed("busctl call org.vfsd1 /org/vfsd1 org.vfsd1.Manager GetShare s alone")

    with subtest("The guest reads what the host shares, and the host what the guest writes"):
        host.succeed("vfsctl machine start declared")
        host.wait_until_succeeds("</dev/null vfsctl exec declared -- cat /mnt/src/hello | grep 'from the host'", timeout=120)
        host.succeed("</dev/null vfsctl exec declared -- sh -c 'echo from the guest >/mnt/src/reply'")
        host.succeed("grep 'from the guest' /srv/src/reply")

    with subtest("vfsd's end ends no machine"):
        host.succeed("systemctl kill -s KILL vfsd.service")
        host.wait_until_succeeds("</dev/null vfsctl exec declared -- true", timeout=60)
        host.succeed("vfsctl machine shutdown declared")

    with subtest("A user needs no rights"):
        host.wait_for_unit("user@1000.service")
        host.succeed(
            "su -l alice -c 'XDG_RUNTIME_DIR=/run/user/1000 "
            "vfsctl run </dev/null --builtin --accelerator tcg --share /home/alice:/mnt/home --exec \"touch /mnt/home/here\"'"
        )
        host.succeed("test -e /home/alice/here")
  '';
}
