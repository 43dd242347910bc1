# What vfsd would refuse, or what would fail when a machine starts, said when the configuration is evaluated. The rules
# and numbers are those of vfsd/model.py, vfsd/limits.py and vfsd/names.py; tests/unit/test_nix.py holds them against
# vfsd itself.
{
  lib,
  # "system" or "user": whose vfsd it is
  scope,
}:
let
  inherit (lib)
    any
    attrNames
    attrValues
    concatLists
    concatMapStrings
    elem
    filter
    hasPrefix
    length
    mapAttrsToList
    stringLength
    stringToCharacters
    unique
    ;

  mib = 1024 * 1024;
  or' = default: value: if value == null then default else value;
  given = value: value != null && value != "" && value != [ ] && value != false;
  isName = most: name: builtins.match "[A-Za-z0-9_][A-Za-z0-9._-]{0,${toString (most - 1)}}" name != null;

  # Bytes of a unit's name, in which systemd escapes each - as \x2d.
  fitsUnit =
    prefix: name:
    stringLength (prefix + concatMapStrings (letter: if letter == "-" then "\\x2d" else letter) (stringToCharacters name))
    + stringLength ".service"
    <= 255;

  # Bytes of a size, which is a number or a text such as "2G".
  bytes =
    value:
    let
      parts = builtins.match "0*([0-9]+)([KMGT]?)" value;
      factors = {
        "" = 1;
        K = 1024;
        M = mib;
        G = 1024 * mib;
        T = 1024 * 1024 * mib;
      };
    in
    if builtins.isInt value then value else builtins.fromJSON (builtins.elemAt parts 0) * factors.${builtins.elemAt parts 1};

  limited = who: it: memoryMin: tasksMin: [
    {
      assertion = elem (bytes (or' 0 it.memoryMax)) [ 0 ] || bytes it.memoryMax >= memoryMin;
      message = "${who} has memoryMax ${toString it.memoryMax} and needs ${toString memoryMin} bytes; give at least that, or 0 for no limit.";
    }
    {
      assertion = elem (or' 0 it.cpuQuotaPerSecUSec) [ 0 ] || it.cpuQuotaPerSecUSec >= 1000;
      message = "${who} has cpuQuotaPerSecUSec ${toString it.cpuQuotaPerSecUSec}; give at least 1000, or 0 for no limit.";
    }
    {
      assertion = elem (or' 0 it.tasksMax) [ 0 ] || it.tasksMax >= tasksMin;
      message = "${who} has tasksMax ${toString it.tasksMax} and needs ${toString tasksMin}; give at least that, or 0 for no limit.";
    }
  ];

  shareTasks = share: 8 + or' 0 share.threadPoolSize;

  checkShare =
    who: share:
    [
      {
        assertion = share.source != null;
        message = "${who} has no source; name the directory of the host that is shared.";
      }
      {
        assertion = stringLength (or' "" share.tag) <= 36;
        message = "${who} has the tag \"${or' "" share.tag}\", which has more than 36 bytes; use a shorter one.";
      }
      {
        assertion = !(given share.posixACL && (given share.translateUID || given share.translateGID));
        message = "${who} has posixACL and translateUID or translateGID; virtiofsd can do only one of the two.";
      }
      {
        assertion =
          !(given share.uidMap || given share.gidMap)
          || or' (if scope == "system" then "chroot" else "namespace") share.sandbox == "namespace";
        message = "${who} has uidMap or gidMap, which need sandbox = \"namespace\".";
      }
    ]
    ++ limited who share (16 * mib) (shareTasks share);

  checkLoneShare =
    name: share:
    let
      who = "Share \"${name}\" of vfsd";
    in
    [
      {
        assertion = isName 128 name && fitsUnit "vfsd-share-" name;
        message = "${who} can't have that name; use 1 to 128 of a-z A-Z 0-9 . _ -, not beginning with . or -, and fewer if many are -.";
      }
    ]
    ++ checkShare who share;

  # 127.0.0.1:2222:22 of a forward; vfsd reads the address.
  portsFit =
    forward:
    let
      ports = builtins.match ".*:0*([0-9]+):0*([0-9]+)" forward;
    in
    builtins.all (
      port:
      let
        number = builtins.fromJSON port;
      in
      number > 0 && number < 65536
    ) ports;

  isCredential = name: builtins.match "[ -.0-9;-~]{1,255}" name != null && !elem name [ "." ".." ];

  # What a kernel takes for a device in root=, unless somebody else mounts it; and what it can't be told at all.
  isDevice = tag: builtins.match "[0-9a-fA-F]+|[0-9]+:[0-9]+.*|(mtd|ubi|/dev/|LABEL=|UUID=|PARTUUID=|PARTLABEL=).*" tag != null;
  isWord = tag: builtins.match "[!-~]+" tag != null && builtins.match ".*[\"'\\].*" tag == null;

  # Where the built-in guest has what it lives on
  isReserved = path: builtins.match "/|/(\\.vfsd|dev|proc|sys)(/.*)?" path != null;

  withoutSlash = path: if path == "/" then path else lib.removeSuffix "/" (toString path);

  checkMachine =
    name: machine:
    let
      who = "Machine \"${name}\" of vfsd";
      shares = attrValues machine.shares;
      mountPoints = map (share: withoutSlash share.mountPoint) (filter (share: share.mountPoint != null) shares);
      tags = filter given (map (share: share.tag) shares);
      reserved = filter isReserved mountPoints;
      roots = filter (tag: elem machine.rootShare [ tag "${name}.${tag}" ]) tags;
      mountsRoot = given machine.initrd || given machine.rootOverlay;
      memory = bytes (or' "1G" machine.memory);
      network = or' "user" machine.network;
      credentials = attrNames (or' { } machine.credentials);
      credentialFiles = attrNames (or' { } machine.credentialFiles);
      ofTwo = filter (credential: elem credential credentialFiles) credentials;
      tasks = 80 + or' 1 machine.cpus + lib.foldl' (sum: share: sum + shareTasks share) 0 shares;
    in
    [
      {
        assertion = isName 64 name && fitsUnit "vfsd-machine-" name;
        message = "${who} can't have that name; use 1 to 64 of a-z A-Z 0-9 . _ -, not beginning with . or -, and fewer if many are -.";
      }
      {
        assertion = given machine.builtin || given machine.kernel || given machine.image;
        message = "${who} has nothing to boot; give it a kernel, an image, or builtin = true.";
      }
      {
        assertion =
          !(given machine.builtin)
          || !any given [ machine.kernel machine.initrd machine.image machine.rootShare ];
        message = "${who} boots the built-in guest; kernel, initrd, image and rootShare can't be used with builtin.";
      }
      {
        assertion = !(given machine.initrd) || given machine.kernel;
        message = "${who} has an initrd without a kernel; give both.";
      }
      {
        assertion = !(given machine.rootOverlay) || (given machine.rootShare && !given machine.initrd);
        message = "${who} has rootOverlay, which needs a rootShare, and comes with an initrd of its own.";
      }
      {
        assertion = !(given machine.rootShare) || elem machine.rootShare (tags ++ map (tag: "${name}.${tag}") tags);
        message = "${who} has no share with the tag \"${or' "" machine.rootShare}\", which rootShare names; there are: ${toString tags}.";
      }
      {
        assertion = !(given machine.rootShare) || given machine.kernel || given machine.builtin;
        message = "${who} has a rootShare, which needs a kernel; give one.";
      }
      {
        assertion = builtins.all (tag: isWord tag && (mountsRoot || !isDevice tag)) roots;
        message = "${who} can't boot from the share with the tag ${toString roots}: its kernel would take that for something else; use another, such as \"root\".";
      }
      {
        assertion = !(given machine.builtin) || reserved == [ ];
        message = "${who} boots the built-in guest, which lives on ${toString reserved} itself; use another mount point.";
      }
      {
        assertion = memory >= 16 * mib && lib.mod memory 8192 == 0;
        message = "${who} has ${toString memory} bytes of memory; give at least ${toString (16 * mib)}, and a multiple of 8192.";
      }
      {
        assertion = length shares <= 128;
        message = "${who} has ${toString (length shares)} shares; 128 are the most.";
      }
      {
        assertion = unique tags == tags;
        message = "${who} has two shares with one tag; give each its own.";
      }
      {
        assertion = unique mountPoints == mountPoints;
        message = "${who} has two shares with one mount point; give each its own.";
      }
      {
        assertion = !(given machine.forward) || network == "user";
        message = "${who} forwards ports, which needs network = \"user\".";
      }
      {
        assertion = builtins.all portsFit (or' [ ] machine.forward);
        message = "${who} forwards a port that is none; ports are 1 to 65535.";
      }
      {
        assertion = builtins.all isCredential (credentials ++ credentialFiles);
        message = "${who} has a credential whose name can't be used; use 1 to 255 printable letters without / and :.";
      }
      {
        assertion = ofTwo == [ ];
        message = "${who} has ${toString ofTwo} in credentials and in credentialFiles; take one out.";
      }
    ]
    # a second QEMU is there in a Refresh
    ++ limited who machine (memory + 128 * mib) (2 * tasks)
    ++ concatLists (mapAttrsToList (share: checkShare "Share \"${share}\" of machine \"${name}\" of vfsd") machine.shares);

  # A machine's own share is called MACHINE.TAG, beside those of no machine.
  checkNames =
    cfg:
    concatLists (
      mapAttrsToList (
        name: machine:
        map (share: {
          assertion = !(cfg.shares ? "${name}.${or' "" share.tag}");
          message = "Share \"${name}.${or' "" share.tag}\" of vfsd has the name of a share of machine \"${name}\"; use another.";
        }) (attrValues machine.shares)
      ) cfg.machines
    );
in
cfg: {
  assertions =
    concatLists (mapAttrsToList checkLoneShare cfg.shares)
    ++ concatLists (mapAttrsToList checkMachine cfg.machines)
    ++ checkNames cfg;
  warnings = concatLists (
    mapAttrsToList (
      name: machine:
      lib.optional (or' { } machine.credentials != { }) ''
        The credentials of machine "${name}" of vfsd lie in the Nix store, where everybody can read them. What is secret
        belongs into a file that services.vfsd.machines.${name}.credentialFiles names.
      ''
    ) cfg.machines
  );
}
