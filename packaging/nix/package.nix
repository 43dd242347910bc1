{
  lib,
  stdenv,
  python3,
  gettext,
  glib,
  makeBinaryWrapper,
  runCommand,
  qemu,
  virtiofsd,
  # a statically linked busybox and a kernel: what the built-in guest is made of
  pkgsStatic,
  linux,
  # what vfsd and vfsctl run besides
  openssh,
  systemd,
  util-linux,
  xz,
  zstd,
  testers,
}:
let
  python = python3.withPackages (modules: [
    modules.click
    modules.dbus-next
    modules.pyudev
    modules.qemu-qmp
    modules.rich
    modules.systemd-python
  ]);

  # vfsd looks for a kernel's modules beside it, and nixpkgs has them in an output of their own.
  guestKernel = runCommand "vfsd-guest-kernel" { } ''
    install -D -m 644 ${linux}/${linux.target or stdenv.hostPlatform.linux-kernel.target} $out/kernel
    ln -s ${linux.modules or linux}/lib $out/lib
  '';
in
stdenv.mkDerivation (finalAttrs: {
  pname = "vfsd";
  version = "0.1.0";

  src = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.unions [
      ../../Makefile
      ../../applets
      ../../dbus
      ../../packaging/bundled-requirements.txt
      ../../packaging/completions
      ../../packaging/launcher.in
      ../../packaging/man
      ../../packaging/polkit
      ../../units
      ../../vfsd
    ];
  };

  strictDeps = true;
  nativeBuildInputs = [
    gettext
    glib
    makeBinaryWrapper
    python
  ];

  # The Makefile's rule for what is on the running system; here it is $out
  postPatch = ''
    substituteInPlace packaging/launcher.in Makefile \
      --replace-fail /usr/bin/python3 ${python.interpreter}
  '';

  dontConfigure = true;
  dontBuild = true;
  installFlags = [
    "PREFIX=${placeholder "out"}"
    "WITH_QMP=system"
  ];

  # vfsd's own variables name what it is made of, and still give way to those of whoever runs it. Nothing is looked up
  # in /usr. On other distributions the host's ssh and systemctl come first: they know the host's configuration, and
  # that of systemd its version. /run/wrappers has newuidmap, which is setuid. VFSD_USES names this package in the
  # environment of what runs from it, so that it is not collected before that ends: its processes are Python's.
  postInstall = ''
    for program in vfsd vfsctl; do
      install -d $out/libexec
      mv $out/bin/$program $out/libexec/$program
      makeWrapper $out/libexec/$program $out/bin/$program \
        --set-default VFSD_QEMU ${lib.getExe' qemu "qemu-system-${stdenv.hostPlatform.qemuArch}"} \
        --set-default VFSD_VIRTIOFSD ${lib.getExe' virtiofsd "virtiofsd"} \
        --set-default VFSD_GUEST_BUSYBOX ${lib.getExe' pkgsStatic.busybox "busybox"} \
        --set-default VFSD_GUEST_KERNEL ${finalAttrs.passthru.guestKernel}/kernel \
        --set VFSD_USES $out \
        --suffix PATH : ${
          lib.makeBinPath [
            openssh
            systemd
            util-linux
            xz
            zstd
          ]
        } \
        --suffix PATH : /run/wrappers/bin
    done

    # GNOME Shell looks for an extension's settings beside it first, and in no profile of NixOS's
    extension=$out/share/gnome-shell/extensions/vfsd@vfsd1.org
    install -d $extension/schemas
    glib-compile-schemas --strict --targetdir=$extension/schemas $out/share/glib-2.0/schemas
  '';

  doInstallCheck = true;
  installCheckPhase = ''
    runHook preInstallCheck
    $out/bin/vfsctl --version
    runHook postInstallCheck
  '';

  passthru = {
    inherit guestKernel;
    tests =
      let
        vmTest =
          file:
          testers.runNixOSTest (
            import file {
              lib = import ./lib.nix;
              nixosModules.vfsd = {
                imports = [ ./module.nix ];
                services.vfsd.package = finalAttrs.finalPackage;
              };
            }
          );
      in
      {
        version = testers.testVersion { package = finalAttrs.finalPackage; };
        shares = vmTest ./tests/shares.nix;
        nixos-guest = vmTest ./tests/nixos-guest.nix;
      };
  };

  meta = {
    description = "virtio-fs shares and their QEMU machines as transient systemd units, over D-Bus";
    license = lib.licenses.lgpl21Plus;
    platforms = [
      "aarch64-linux"
      "x86_64-linux"
    ];
    mainProgram = "vfsctl";
  };
})
