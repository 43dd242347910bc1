# Stand-ins for the packages that packaging/nix uses. Those that a build of vfsd runs are the system's own, under a path
# of the store; the others are names.
{ lib, system }:
let
  build =
    name: command: more:
    derivation {
      inherit name system;
      builder = "/bin/bash";
      args = [
        "-euc"
        # bash would become its last command; coreutils close their output before they end, and Nix kills who does so
        "PATH=/usr/bin:/bin; ${command}\n:"
      ];
    }
    // more;
  named = name: {
    type = "derivation";
    inherit name;
    outPath = "/nix/store/${name}";
    meta.mainProgram = name;
  };

  # TOML, of which JSON's texts, numbers and lists are a part
  toml =
    value:
    if builtins.isAttrs value then
      "{ ${lib.concatStringsSep ", " (lib.mapAttrsToList (key: one: "${builtins.toJSON key} = ${toml one}") value)} }"
    else if builtins.isList value then
      "[ ${lib.concatStringsSep ", " (map toml value)} ]"
    else
      builtins.toJSON value;
  document = value: lib.concatStringsSep "" (lib.mapAttrsToList (key: one: "${key} = ${toml one}\n") value);

  python = build "python3" "mkdir -p $out/bin; ln -s /usr/bin/python3 $out/bin/python3" { };
  modules = lib.genAttrs [
    "click"
    "dbus-next"
    "hypothesis"
    "pyudev"
    "pytest"
    "pytest-asyncio"
    "qemu-qmp"
    "rich"
    "systemd-python"
  ] named;

  pkgs =
    lib.genAttrs [
      "gettext"
      "glib"
      "gnugrep"
      "makeBinaryWrapper"
      "mandoc"
      "mypy"
      "openssh"
      "qemu"
      "ruff"
      "systemd"
      "util-linux"
      "virtiofsd"
      "xz"
      "zstd"
    ] named
    // {
      inherit lib;
      path = ./.;
      stdenv = {
        hostPlatform = {
          inherit system;
          isAarch64 = system == "aarch64-linux";
          qemuArch = lib.removeSuffix "-linux" system;
          linux-kernel.target = "bzImage";
        };
        mkDerivation =
          attributes:
          let
            final = attributes (final // { finalPackage = package; });
            plain = removeAttrs final [
              "meta"
              "passthru"
              "nativeBuildInputs"
            ];
            package =
              derivation (
                plain
                // {
                  name = "${final.pname}-${final.version}";
                  inherit system;
                  builder = "/bin/bash";
                  args = [ ./build.sh ];
                  # each is evaluated, and nothing is on PATH but the system
                  needs = map (input: input.name) final.nativeBuildInputs;
                }
              )
              // final.passthru
              // {
                inherit (final) meta passthru version;
              };
          in
          package;
      };
      runCommand =
        name: { }:
        command:
        build name command { };
      writeShellApplication =
        {
          name,
          runtimeInputs,
          text,
        }:
        named name // { inherit text runtimeInputs; };
      mkShell = { packages }: named "shell" // { inherit packages; };
      python3.withPackages =
        choose:
        builtins.deepSeq (map (module: module.name) (choose modules)) (
          python // { interpreter = "${python}/bin/python3"; }
        );
      pkgsStatic.busybox = named "busybox";
      linux = build "linux" "mkdir -p $out/lib/modules/6.12.0; echo kernel >$out/bzImage; touch $out/lib/modules/6.12.0/modules.builtin" {
        features = { };
      };
      # at once, and so without what the text refers to having been built
      formats.toml = { }: {
        generate = name: value: builtins.toFile name (builtins.unsafeDiscardStringContext (document value));
      };
      testers = {
        runNixOSTest = test: named "vm-test-${(test { inherit lib pkgs; }).name}";
        # it runs mainProgram --version
        testVersion = { package }: named "${package.meta.mainProgram}-test-version-${package.version}";
      };
      callPackage =
        file: { }:
        let
          package = import file;
        in
        package (builtins.intersectAttrs (builtins.functionArgs package) pkgs);
      extend = overlay: pkgs // overlay (pkgs // overlay pkgs pkgs) pkgs;
    };
in
pkgs
