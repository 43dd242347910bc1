{
  outputs = _: {
    lib = import ./lib.nix;
    legacyPackages =
      let
        lib = import ./lib.nix;
      in
      lib.genAttrs [
        "aarch64-linux"
        "x86_64-linux"
      ] (system: import ./packages.nix { inherit lib system; });
  };
}
