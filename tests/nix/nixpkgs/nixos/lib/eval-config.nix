# What lib.nixosSystem returns, as far as packaging/nix uses it.
{
  system,
  modules,
  lib ? import ../../lib.nix,
}@given:
let
  pkgs = import ../../packages.nix { inherit lib system; };
  stubs = import ../../options.nix { inherit lib pkgs; };
in
lib.evalModules {
  modules = [ stubs.guest ] ++ modules;
  specialArgs = { inherit pkgs; };
}
// {
  extendModules = more: import ./eval-config.nix (given // { modules = modules ++ more.modules; });
}
