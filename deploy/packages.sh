#!/usr/bin/env bash
# The one list of Debian packages, and the installing of those that are missing.
#
#   deploy/packages.sh build             what it takes to build the three programs and to run deploy/quickstart.sh
#   deploy/packages.sh build test        and what tests/run.sh needs beside that
#   deploy/packages.sh browser           and what looks at pages as people do
#   deploy/packages.sh --list GROUP...   prints the names
#   deploy/packages.sh --missing GROUP...   prints the names of those that are not installed
#
# Says what it installs; says and does nothing where everything is there. As an ordinary user it installs nothing, says
# what to run as root, and exits 1.
set -euo pipefail

build=(
  g++ cmake ninja-build ccache pkg-config
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler
  libabsl-dev libboost1.81-dev libssl-dev nlohmann-json3-dev libspdlog-dev libcli11-dev libeigen3-dev libpcre2-dev libicu-dev
  prometheus-cpp-dev
  curl jq # quickstart.sh asks over HTTP and reads the answers
)
test=(
  libgtest-dev libgmock-dev
  python3 python3-venv # the end-to-end tests' own virtual environment
  strace               # kills writers at every write, fsync and rename
  git                  # the tree checks read the list of committed files
  clang-19 lld-19 libclang-rt-19-dev g++-aarch64-linux-gnu
)
browser=(chromium)

usage() {
  echo "usage: deploy/packages.sh [--list | --missing] build|test|browser ..." >&2
  exit 2
}

action=install
wanted=()
for argument in "$@"; do
  case $argument in
    --list | --missing) action=${argument#--} ;;
    build) wanted+=("${build[@]}") ;;
    test) wanted+=("${test[@]}") ;;
    browser) wanted+=("${browser[@]}") ;;
    *) usage ;;
  esac
done
[ ${#wanted[@]} -gt 0 ] || usage
if [ "$action" = list ]; then
  printf '%s\n' "${wanted[@]}"
  exit 0
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  echo "packages.sh: no apt-get here, so not Debian: install the equivalents of ${wanted[*]}" >&2
  exit 1
fi

missing=()
for package in "${wanted[@]}"; do
  state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done
if [ "$action" = missing ]; then
  [ ${#missing[@]} -eq 0 ] || printf '%s\n' "${missing[@]}"
  exit 0
fi
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "packages.sh: packages are missing, and only root may install them. Run this once, then start again:" >&2
  echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
echo "Installing ${#missing[@]} Debian packages and what they depend on: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q -o Acquire::Retries=3
apt-get install -q -y --no-install-recommends -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 "${missing[@]}"
