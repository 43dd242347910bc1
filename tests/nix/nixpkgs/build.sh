# The phases of stdenv that the package uses, on the system's own tools.
set -euo pipefail
export PATH=/usr/bin:/bin SHELL=/bin/bash HOME=/nonexistent SOURCE_DATE_EPOCH=315532800

# substituteInPlace FILE… --replace-fail OLD NEW
substituteInPlace() {
    local files=()
    while [ "$1" != --replace-fail ]; do files+=("$1"); shift; done
    local file
    for file in "${files[@]}"; do
        grep -qF -- "$2" "$file" || { echo "$file has no $2" >&2; exit 1; }
        sed -i "s|$2|$3|g" "$file"
    done
}
# makeWrapper PROGRAM WRAPPER [--set NAME VALUE | --set-default NAME VALUE | --suffix NAME : VALUE]…
makeWrapper() {
    local program=$1 wrapper=$2
    shift 2
    test -x "$program"
    {
        echo '#!/bin/bash'
        while [ $# -gt 0 ]; do
            case $1 in
            --set-default) echo "export $2=\${$2-$3}"; shift 3 ;;
            --set) echo "export $2=$3"; shift 3 ;;
            --suffix) echo "export $2=\${$2:+\$$2$3}$4"; shift 4 ;;
            *) echo "makeWrapper: $1" >&2; exit 1 ;;
            esac
        done
        echo "exec $program \"\$@\""
    } >"$wrapper"
    chmod 755 "$wrapper"
}
runHook() { :; }

cp -r "$src" source
chmod -R u+w source
cd source
eval "$postPatch"
make install SHELL="$SHELL" $installFlags
eval "$postInstall"
eval "$installCheckPhase"
