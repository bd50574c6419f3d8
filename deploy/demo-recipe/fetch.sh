#!/usr/bin/env bash
# Fetches the corpus packages into ./debs and unpacks them into ./x (700 MB, five minutes). Run in an empty folder.
set -euo pipefail
recipe=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

mkdir -p debs x
missing=()
while read -r package; do
  if ! compgen -G "debs/${package}_*.deb" >/dev/null &&
    ! (cd debs && apt-get -o APT::Sandbox::User=root download -q "$package" >/dev/null); then
    missing+=("$package")
    continue
  fi
  [ -d "x/$package" ] || dpkg -x debs/"${package}"_*.deb "x/$package"
done < <("$recipe/sources.py")

# Debian drops a package now and then: the corpus is then a little smaller, and says so.
[ ${#missing[@]} -eq 0 ] || echo "not to be had: ${missing[*]}" >&2
