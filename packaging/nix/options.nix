# The options of shares and machines, one for each key of vfsd's TOML files and of that key's type. vfsd.share(5) and
# vfsd.machine(5) describe them; tests/unit/test_nix.py compares both lists.
#
# What is left at null is not written, so that vfsd's own default applies, whatever it is in the version that runs.
{ lib }:
let
  inherit (lib) mkOption types;

  option =
    key: type: description:
    mkOption {
      inherit description;
      type = types.nullOr type;
      default = null;
    }
    // {
      # read by `toml` below and by the tests; the module system ignores it
      inherit key;
    };

  # Numbers are unsigned in vfsd: of 32 bits, or of 64, of which Nix has 63.
  u32 = types.ints.between 0 4294967295;
  u64 = types.ints.unsigned;
  size = types.either types.ints.unsigned (types.strMatching "[0-9]+[KMGT]?");
  # An argument of systemd's, QEMU's or the kernel's, or a file outside the store
  path = types.path;
  texts = types.listOf types.str;

  limits = {
    memoryMax = option "memory_max" size "The most memory that it may use of the host: bytes, or a text such as `2G`.";
    cpuQuotaPerSecUSec = option "cpu_quota_per_sec_usec" u64 "µs of processor time in a second; 1000000 is one processor.";
    ioWeight = option "io_weight" (types.ints.between 0 10000) "Its weight for input and output, 1 to 10000; 0 is systemd's default.";
    tasksMax = option "tasks_max" u64 "The most processes and threads.";
  };

  shareOptions = {
    tag = option "tag" types.str ''
      The name by which the guest mounts the share, of at most 36 bytes. A machine's own share has its attribute's name
      by default.
    '';
    mountPoint = option "mount_point" path "Where the guest mounts the share.";
    mountOptions = option "mount_options" (types.strMatching "[^[:space:][:cntrl:]\\\\]*") "Options of the guest's mount, separated by commas.";
    readOnly = option "read_only" types.bool "Whether the guest may only read.";
    cache = option "cache" (types.enum [ "auto" "always" "metadata" "never" ]) "What the guest may keep in its cache.";
    writeback = option "writeback" types.bool "Whether the guest may hold back what it writes.";
    directIO = option "direct_io" types.bool "Whether files that the guest opens with O_DIRECT are opened so on the host.";
    xattr = option "xattr" types.bool "Whether there are extended attributes.";
    posixACL = option "posix_acl" types.bool "Whether there are access control lists.";
    announceSubmounts = option "announce_submounts" types.bool "Whether the guest sees what is mounted below the source as mounts.";
    announceTag = option "announce_tag" types.bool "Whether virtiofsd tells the tag over the share's socket; for crosvm, not for QEMU.";
    inodeFileHandles = option "inode_file_handles" (types.enum [ "never" "prefer" "mandatory" ]) "Whether virtiofsd refers to files by handle, and not by open descriptor.";
    threadPoolSize = option "thread_pool_size" u32 "Threads of virtiofsd that serve requests.";
    translateUID = option "translate_uid" texts "Rules by which virtiofsd translates users.";
    translateGID = option "translate_gid" texts "Rules by which virtiofsd translates groups.";
    uidMap = option "uid_map" texts "The users of virtiofsd's user namespace.";
    gidMap = option "gid_map" texts "The groups of virtiofsd's user namespace.";
    xattrMap = option "xattr_map" types.str "Rules by which the names of extended attributes are mapped.";
    killPriv = option "kill_priv" types.bool "Whether a write takes a file's setuid bit and capabilities away.";
    securityLabel = option "security_label" types.bool "Whether new files get the guest's security label.";
    allowDeviceNodes = option "allow_device_nodes" types.bool "Whether the guest may make device nodes.";
    allowSetuid = option "allow_setuid" types.bool "Whether the guest may make setuid files.";
    sandbox = option "sandbox" (types.enum [ "namespace" "chroot" "none" ]) "How virtiofsd confines itself.";
    socketGroup = option "socket_group" types.str "The group that may connect to the share's socket.";
    logLevel = option "log_level" (types.enum [ "off" "error" "warn" "info" "debug" "trace" ]) "What virtiofsd logs.";
    limitNOFILE = option "limit_nofile" u64 "The most files that virtiofsd may hold open.";
  }
  // limits;

  machineOptions = {
    memory = option "memory" size "The guest's memory: bytes, or a text such as `2G`.";
    cpus = option "cpus" (types.ints.between 1 4096) "The guest's processors.";
    kernel = option "kernel" path "A kernel to boot.";
    initrd = option "initrd" path "The kernel's initial RAM file system.";
    append = option "append" types.str "Arguments of the kernel.";
    rootShare = option "root_share" types.str "The tag of the share that is the guest's root file system.";
    rootOverlay = option "root_overlay" types.bool "Whether the root share stays as it is, and the guest writes to its memory.";
    image = option "image" path "A disk image to boot.";
    firmware = option "firmware" (types.enum [ "bios" "uefi" ]) "What boots the image.";
    accelerator = option "accelerator" (types.enum [ "auto" "kvm" "tcg" ]) "What QEMU runs the guest on.";
    builtin = option "builtin" types.bool "Whether to boot the small guest that vfsd has built in.";
    network = option "network" (types.strMatching "user|none|(bridge|tap):[^/:, [:space:]]{1,15}") "`user`, `none`, `bridge:NAME` or `tap:NAME`.";
    forward = option "forward" (types.listOf (types.strMatching "(tcp|udp):.*:[0-9]{1,5}:[0-9]{1,5}")) "Ports of the host that lead into the guest, such as `tcp:127.0.0.1:2222:22`.";
    display = option "display" (types.enum [ "none" "spice" "vnc" ]) "The guest's display.";
    onShareFailure = option "on_share_failure" (types.enum [ "signal" "heal" "restart" "stop" ]) "What to do when the virtiofsd of a share dies.";
    autostart = option "autostart" types.bool "Whether the machine starts with vfsd.";
    credentials = option "credentials" (types.attrsOf types.str) ''
      Credentials for the guest's systemd. They lie in the Nix store, where everybody can read them: what is secret
      belongs into a file that `credentialFiles` names.
    '';
    credentialFiles = option "credential_files" (types.attrsOf path) "Files of the host with credentials for the guest's systemd.";
    ssh = option "ssh" types.bool "Whether `vfsctl ssh` may log in as the guest's root.";
    sparePorts = option "spare_ports" (types.ints.between 0 64) "How many shares may be attached while the machine runs.";
    extraArguments = option "extra_arguments" texts "Further arguments of QEMU.";
    shutdownTimeoutUSec = option "shutdown_timeout_usec" types.ints.positive "µs that the guest has to power off.";
  }
  // limits;

  source = mkOption {
    type = types.nullOr path;
    default = null;
    example = "/srv/src";
    description = "The directory of the host that is shared. Each share needs one.";
  };

  # The key of an option that is written; "" for one that is not.
  keysOf = lib.mapAttrs (_: declared: declared.key);

  # A path literal of Nix would otherwise be copied to the store, and that is what is shared.
  value = given: if builtins.isPath given then toString given else given;

  toml =
    keys: given:
    lib.mapAttrs' (name: key: {
      name = key;
      value = value given.${name};
    }) (lib.filterAttrs (name: _: given.${name} != null) keys);
in
rec {
  shareKeys = keysOf shareOptions // {
    source = "source";
  };
  machineKeys = keysOf machineOptions;

  share = {
    options = lib.mapAttrs (_: declared: removeAttrs declared [ "key" ]) shareOptions // {
      inherit source;
    };
  };
  machine = {
    options = lib.mapAttrs (_: declared: removeAttrs declared [ "key" ]) machineOptions // {
      shares = mkOption {
        type = types.attrsOf (
          types.submodule (
            { name, ... }:
            {
              options = share.options;
              config.tag = lib.mkDefault name;
            }
          )
        );
        default = { };
        description = "The machine's own shares.";
      };
    };
  };

  # What the module offers, on the system and for a user.
  declared = {
    machines = mkOption {
      type = types.attrsOf (types.submodule machine);
      default = { };
      example = lib.literalExpression ''
        {
          build = {
            builtin = true;
            memory = "2G";
            shares.src = {
              source = "/srv/src";
              mountPoint = "/mnt/src";
              readOnly = true;
            };
          };
        }
      '';
      description = "Virtual machines and what is shared with each.";
    };
    shares = mkOption {
      type = types.attrsOf (types.submodule share);
      default = { };
      description = "Shares of no machine, for any VMM that connects to their sockets.";
    };
  };

  # The content of the files machines/NAME.toml and shares/NAME.toml, as attribute sets.
  machineToml =
    given:
    toml machineKeys given
    // lib.optionalAttrs (given.shares != { }) { shares = map shareToml (lib.attrValues given.shares); };
  shareToml = toml shareKeys;

  # The files below a configuration folder: path → what format.generate makes of the content.
  files =
    format: given:
    lib.mapAttrs' (name: machine: {
      name = "vfsd/machines/${name}.toml";
      value = format.generate "vfsd-machine.toml" (machineToml machine);
    }) given.machines
    // lib.mapAttrs' (name: share: {
      name = "vfsd/shares/${name}.toml";
      value = format.generate "vfsd-share.toml" (shareToml share);
    }) given.shares;
}
