#!/usr/bin/env bash
# Builds the test kernel: build.sh SOURCE WORK OUT
#
# SOURCE is the archive in Debian's package linux-source-6.12, WORK an empty folder. `cargo xtask test` calls this and brings
# both; it counts the lines that make writes to say how far the build is.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
source=$(realpath "$1")
out=$(realpath -m "$3")
cd "$2"

# The same source gives the same bytes.
export KBUILD_BUILD_TIMESTAMP=@0 KBUILD_BUILD_USER=allod KBUILD_BUILD_HOST=allod

tar --strip-components=1 -xf "$source"
patch --quiet -p1 <"$here/kernel.patch"
make -s tinyconfig
scripts/kconfig/merge_config.sh -m -Q .config "$here/kernel.config" >/dev/null
make -s olddefconfig
make "-j$(nproc)" vmlinux
strip -o "$out" vmlinux
