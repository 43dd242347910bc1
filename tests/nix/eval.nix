# Evaluates packaging/nix against stand-ins, or against nixpkgs' own lib.
{
  project,
  lib ? import ./nixpkgs/lib.nix,
  system ? "x86_64-linux",
}:
let
  nix = project + "/packaging/nix";
  plain = import ./nixpkgs/packages.nix { inherit lib system; };
  pkgs = plain // {
    vfsd = {
      type = "derivation";
      name = "vfsd";
      outPath = "/nix/store/vfsd";
      meta.mainProgram = "vfsctl";
    };
  };
  stubs = import ./nixpkgs/options.nix { inherit lib pkgs; };
  evaluate =
    modules:
    lib.evalModules {
      inherit modules;
      specialArgs = { inherit pkgs; };
    };

  host = given: (evaluate [ stubs.host (nix + "/module.nix") { services.vfsd = given; } ]).config;
  home = given: (evaluate [ stubs.home (nix + "/home-manager.nix") { services.vfsd = given; } ]).config;

  system' = modules: import ./nixpkgs/nixos/lib/eval-config.nix { inherit lib modules system; };
  guest = given: (system' [ (nix + "/guest.nix") given ]).config;

  failed = config: map (rule: rule.message) (builtins.filter (rule: !rule.assertion) config.assertions);
  attempt =
    value:
    let
      tried = builtins.tryEval (builtins.deepSeq value value);
    in
    if tried.success then tried.value else null;
  tests = lib.genAttrs [ "nixos-guest" "shares" ] (
    name:
    import (nix + "/tests/${name}.nix") {
      lib = import (nix + "/lib.nix");
      nixosModules.vfsd = { };
    } { inherit lib pkgs; }
  );
in
{
  inherit pkgs;
  options = import (nix + "/options.nix") { inherit lib; };
  # A system as a machine, and the same as a value of the host's module
  machine = modules: attempt ((import (nix + "/lib.nix")).machineFromNixos (system' modules));
  guestModule = nix + "/guest.nix";
  # The scripts of the VM tests, and their hosts' vfsd, all else evaluated as well
  scripts = lib.mapAttrs (_: test: test.testScript) tests;
  testHosts = lib.mapAttrs (
    _: test: builtins.deepSeq (removeAttrs test.nodes.host [ "imports" ]) test.nodes.host.services.vfsd
  ) tests;
  package = plain.callPackage (nix + "/package.nix") { };

  # null: it is refused before there are assertions
  hosts = lib.mapAttrs (
    _: given:
    attempt (
      let
        config = host given;
      in
      {
        failed = failed config;
        inherit (config) warnings;
        files = lib.mapAttrs (_: file: "${file.source}") config.environment.etc;
        service = removeAttrs config.systemd.services.vfsd [ "reloadTriggers" ];
        triggers = map (file: "${file}") config.systemd.services.vfsd.reloadTriggers;
        packages = {
          units = map toString config.systemd.packages;
          bus = map toString config.services.dbus.packages;
          programs = map toString config.environment.systemPackages;
        };
        polkit = config.security.polkit;
        groups = lib.attrNames config.users.groups;
      }
    )
  );
  homes = lib.mapAttrs (
    _: given:
    attempt (
      let
        config = home given;
      in
      {
        failed = failed config;
        files = lib.mapAttrs (_: file: "${file.source}") config.xdg.configFile;
        changes = lib.mapAttrs (_: file: file.onChange) config.xdg.configFile;
        packages = map toString config.home.packages;
        bus = map toString config.dbus.packages;
      }
    )
  );
  guests = lib.mapAttrs (
    _: given:
    attempt (
      let
        config = guest given;
      in
      {
        failed = failed config;
        inherit (config) fileSystems;
        inherit (config.boot) kernelParams;
        initrd = config.boot.initrd.availableKernelModules;
        agent = config.services.qemuGuest.enable;
        grub = config.boot.loader.grub.enable;
        swap = config.swapDevices;
        luks = config.boot.initrd.luks.devices;
      }
    )
  );
}
