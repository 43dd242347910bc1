# A stand-in for the part of nixpkgs' lib that packaging/nix uses, so that the modules can be evaluated without nixpkgs.
# Nothing here is nixpkgs' own; where it does less, it fails.
let
  inherit (builtins)
    all
    any
    attrNames
    attrValues
    concatLists
    concatStringsSep
    elem
    filter
    foldl'
    genList
    head
    intersectAttrs
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    map
    mapAttrs
    match
    removeAttrs
    stringLength
    substring
    tail
    toJSON
    typeOf
    ;

  # --- values ---

  optional = condition: value: if condition then [ value ] else [ ];
  optionals = condition: values: if condition then values else [ ];
  optionalAttrs = condition: set: if condition then set else { };
  filterAttrs = keep: set: removeAttrs set (filter (name: !keep name set.${name}) (attrNames set));
  mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
  mapAttrs' = f: set: listToAttrs (mapAttrsToList f set);
  genAttrs =
    names: f:
    listToAttrs (
      map (name: {
        inherit name;
        value = f name;
      }) names
    );
  stringToCharacters = text: genList (at: substring at 1 text) (stringLength text);
  concatMapStrings = f: list: concatStringsSep "" (map f list);
  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
  removeSuffix =
    suffix: text:
    let
      rest = stringLength text - stringLength suffix;
    in
    if rest >= 0 && substring rest (-1) text == suffix then substring 0 rest text else text;
  unique = foldl' (known: value: if elem value known then known else known ++ [ value ]) [ ];
  mod = a: b: a - b * (a / b);
  getOutput = output: package: package.${output} or package;
  getExe' = package: name: "${getOutput "bin" package}/bin/${name}";
  getExe = package: getExe' package package.meta.mainProgram;

  # --- definitions with conditions and priorities ---

  tagged = kind: content: { _type = kind; } // content;
  kindOf = value: if isAttrs value then value._type or "" else "";
  mkIf = condition: content: tagged "if" { inherit condition content; };
  mkMerge = contents: tagged "merge" { inherit contents; };
  mkOverride = priority: content: tagged "override" { inherit priority content; };
  mkDefault = mkOverride 1000;
  mkForce = mkOverride 50;
  mkOption = tagged "option";
  mkEnableOption =
    what:
    mkOption {
      type = types.bool;
      default = false;
      description = "Whether to enable ${what}.";
    };
  mkPackageOption =
    pkgs: name: { }:
    mkOption {
      type = types.package;
      default = pkgs.${name};
      description = "The ${name} package.";
    };

  # All that is defined in one value: [ { priority; value; } ]
  flatten =
    value:
    {
      "if" = if value.condition then flatten value.content else [ ];
      merge = concatLists (map flatten value.contents);
      override = map (one: one // { inherit (value) priority; }) (flatten value.content);
    }
    .${kindOf value} or [
      {
        priority = 100;
        inherit value;
      }
    ];

  # The same of the options in a set of definitions, pushed down to each name.
  pushDown =
    value:
    {
      "if" = map (mapAttrs (_: mkIf value.condition)) (pushDown value.content);
      merge = concatLists (map pushDown value.contents);
      override = map (mapAttrs (_: mkOverride value.priority)) (pushDown value.content);
    }
    .${kindOf value} or [ value ];

  # --- types ---

  path = names: concatStringsSep "." names;
  refuse = where: wanted: value: throw "A definition for option `${path where}' is not of type `${wanted}': ${shown value}";
  shown = value: if isFunction value then "a function" else if isPath value then toString value else toJSON value;
  # Of a type with no parts: all definitions have to be equal
  simple = description: check: {
    inherit description check;
    merge =
      where: values:
      if length (unique values) == 1 then
        head values
      else
        throw "The option `${path where}' has conflicting definition values";
  };
  checked =
    type: where: values:
    type.merge where (map (value: if type.check value then value else refuse where type.description value) values);
  ofPath = value: (isString value || isPath value || (isAttrs value && value ? outPath)) && hasPrefix "/" (toString value);

  types = rec {
    bool = simple "boolean" isBool;
    str = simple "string" isString;
    path = simple "absolute path" ofPath;
    package = simple "package" (value: isAttrs value && value.type or "" == "derivation");
    raw = simple "raw value" (_: true);
    unspecified = raw;
    strMatching = pattern: simple "string matching the pattern ${pattern}" (value: isString value && match pattern value != null);
    enum = values: simple "one of ${toJSON values}" (value: elem value values) // { inherit values; };
    ints = {
      between = low: high: simple "integer between ${toString low} and ${toString high}" (value: isInt value && value >= low && value <= high);
      unsigned = simple "unsigned integer" (value: isInt value && value >= 0);
      positive = simple "positive integer" (value: isInt value && value > 0);
    };
    lines = simple "lines" isString // {
      merge = _: concatStringsSep "\n";
    };
    nullOr = type: {
      description = "null or ${type.description}";
      check = value: value == null || type.check value;
      merge = where: values: if all (value: value == null) values then null else type.merge where values;
    };
    either = one: two: {
      description = "${one.description} or ${two.description}";
      check = value: one.check value || two.check value;
      merge = where: values: (if all one.check values then one else two).merge where values;
    };
    listOf = type: {
      description = "list of ${type.description}";
      check = isList;
      merge = where: values: map (value: checked type where [ value ]) (concatLists values);
    };
    attrsOf = type: {
      description = "attribute set of ${type.description}";
      check = isAttrs;
      merge =
        where: values:
        let
          sets = concatLists (map pushDown values);
          names = unique (concatLists (map attrNames sets));
          found = genAttrs names (name: strongest (concatLists (map (set: optionals (set ? ${name}) (flatten set.${name})) sets)));
        in
        mapAttrs (name: checked type (where ++ [ name ])) (filterAttrs (_: defined: defined != [ ]) found);
    };
    submodule = module: {
      description = "submodule";
      check = value: isAttrs value || isFunction value;
      merge =
        where: values:
        (evaluate {
          prefix = where;
          modules = [ module ] ++ map (value: { config = value; }) values;
          args.name = builtins.elemAt where (length where - 1);
        }).config;
    };
  };

  # --- modules ---

  strongest =
    definitions:
    let
      least = foldl' (least: one: if one.priority < least then one.priority else least) 9999 definitions;
    in
    map (one: one.value) (filter (one: one.priority == least) definitions);

  evaluate =
    {
      modules,
      args ? { },
      prefix ? [ ],
    }:
    let
      called = args // {
        inherit lib config;
        options = declared;
      };
      load =
        module:
        let
          content = if isPath module || isString module then import module else module;
          given = if isFunction content then content (intersectAttrs (builtins.functionArgs content) called) else content;
          plain = given ? config || given ? options || given ? imports;
          whole = if plain then given else { config = given; };
        in
        [ (whole // optionalAttrs (isPath module || isString module) { _file = toString module; }) ]
        ++ concatLists (map load (whole.imports or [ ]));
      # A file that is imported twice counts once; and of a list's parts, nixpkgs has those of later modules first.
      loaded = foldl' (
        known: module: if module ? _file && any (other: other._file or "" == module._file) known then known else [ module ] ++ known
      ) [ ] (concatLists (map load modules));
      declared = foldl' merge { } (map (module: module.options or { }) loaded);
      merge =
        one: two:
        one
        // mapAttrs (
          name: value:
          if !(one ? ${name}) then
            value
          else if kindOf value == "option" then
            throw "option `${name}' is declared twice"
          else
            merge one.${name} value
        ) two;
      definitions = concatLists (map (module: pushDown (module.config or { })) loaded);
      read =
        where: options: sets:
        let
          unknown = filter (name: !(options ? ${name})) (concatLists (map attrNames sets));
          one =
            name: option:
            let
              here = map (set: set.${name}) (filter (set: set ? ${name}) sets);
              defined = concatLists (map flatten here);
              values = strongest (
                optional (option ? default) {
                  priority = 1500;
                  value = option.default;
                }
                ++ defined
              );
            in
            if kindOf option != "option" then
              read (where ++ [ name ]) option (concatLists (map pushDown here))
            else if values == [ ] then
              throw "The option `${path (where ++ [ name ])}' was accessed but has no value defined"
            else
              checked option.type (where ++ [ name ]) values;
        in
        if unknown != [ ] then throw "The option `${path (where ++ [ (head unknown) ])}' does not exist" else mapAttrs one options;
      config = read prefix declared definitions;
    in
    {
      inherit config;
      options = declared;
    };

  lib = {
    inherit
      attrNames
      attrValues
      any
      all
      concatLists
      concatMapStrings
      concatStringsSep
      elem
      filter
      filterAttrs
      foldl'
      genAttrs
      getExe
      getExe'
      getOutput
      hasPrefix
      length
      mapAttrs
      mapAttrs'
      mapAttrsToList
      mkDefault
      mkEnableOption
      mkForce
      mkIf
      mkMerge
      mkOption
      mkOverride
      mkPackageOption
      mod
      optional
      optionalAttrs
      optionals
      removeSuffix
      stringLength
      stringToCharacters
      tail
      types
      unique
      ;
    literalExpression = text: text;
    literalMD = text: text;
    evalModules =
      {
        modules,
        specialArgs ? { },
      }:
      evaluate {
        inherit modules;
        args = specialArgs;
      };
    makeBinPath = packages: concatStringsSep ":" (map (package: "${getOutput "bin" package}/bin") packages);
    trivial.release = "26.11";
    licenses.lgpl21Plus = "LGPL-2.1-or-later";
    # all of it: what is left out is seen only by nixpkgs' own
    fileset = {
      unions = files: files;
      toSource =
        { root, fileset }:
        assert all builtins.pathExists fileset;
        builtins.path {
          name = "source";
          path = root;
          filter =
            file: _:
            any (
              wanted:
              file == toString wanted
              || hasPrefix "${toString wanted}/" file && match ".*/__pycache__(/.*)?" file == null
              || hasPrefix "${file}/" (toString wanted)
            ) fileset;
        };
    };
  };
in
lib
