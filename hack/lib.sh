# Sourced by the scripts of this folder: what a machine needs before cargo can take over. POSIX shell, functions only.
# `cargo xtask lab-build --check-host` says the same without changing anything.

qemu_needed=10 # the first major version whose emulated igb PFs behave as the tests expect

# The names in hack/debian-packages. $1: repository root.
listed_packages() {
  sed 's/#.*//' "$1/hack/debian-packages" | tr -s ' \t\n' '\n' | sed '/^$/d'
}

# Those of the named packages that are not installed.
not_installed() {
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
  done
}

# The listed packages that are not installed. $1: repository root.
missing_packages() {
  not_installed $(listed_packages "$1")
}

# 1:10.0.2+ds-2~bpo12+1 -> 10
upstream_major() {
  echo "$1" | sed 's/^[0-9]*://; s/[^0-9].*//'
}

# Prints the apt source of a release's backports on the mirror that this machine already uses for the release itself.
# $1: codename; standard input: lines `<site>|<release>|<codename>|<component>` of `apt-get indextargets`.
backports_source() {
  while IFS='|' read -r site release codename component; do
    if [ "$component" = main ] && { [ "$release" = "$1" ] || [ "$codename" = "$1" ]; }; then
      echo "deb $site $1-backports main"
      return 0
    fi
  done
  echo "no apt source of this machine has $1 main" >&2
  return 1
}

# True if a version of qemu-system-x86 is new enough. $1: Debian version, may be empty.
qemu_suffices() {
  major=$(upstream_major "$1")
  [ "${major:-0}" -ge "$qemu_needed" ]
}

installed_version() {
  dpkg-query -W -f '${Version}' "$1" 2>/dev/null || true
}

# Adds backports in a file of its own if this Debian's QEMU is too old; sets from_backports for the installation.
offer_new_qemu() {
  from_backports=
  qemu_suffices "$(installed_version qemu-system-x86)" && return 0
  qemu_suffices "$(LC_ALL=C apt-cache policy qemu-system-x86 | sed -n 's/^  Candidate: //p')" && return 0
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  targets=$(apt-get indextargets --format '$(SITE)|$(RELEASE)|$(CODENAME)|$(COMPONENT)' 'Created-By: Packages')
  # To a variable first: a redirection would leave an empty file behind when nothing is found.
  line=$(echo "$targets" | backports_source "$codename") || return 1
  echo "$line" >/etc/apt/sources.list.d/sriov-lab-backports.list
  apt-get -q update || return 1
  from_backports=$codename-backports
}

# Installs what hack/debian-packages lists and this machine lacks. $1: repository root.
install_packages() {
  missing=$(missing_packages "$1")
  if [ -z "$missing" ] && qemu_suffices "$(installed_version qemu-system-x86)"; then
    return 0
  fi
  if [ "$(id -u)" != 0 ]; then
    echo "root is needed once, to install:" ${missing:-qemu-system-x86} >&2
    return 1
  fi
  apt-get -q update || return 1
  offer_new_qemu || return 1
  # Only QEMU, and what it needs, comes from backports. $others is a list of names, so it is not quoted.
  others=$(echo "$missing" | grep -vx qemu-system-x86) || true
  if [ -n "$others" ]; then
    DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $others || return 1
  fi
  DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends ${from_backports:+-t "$from_backports"} qemu-system-x86
}

# What follows an option, as `--option value` or `--option=value`; nothing if it is not there. $1: the option, rest: a command line.
value_of() {
  wanted=$1
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      "$wanted") echo "${2:-}" && return ;;
      "$wanted"=*) echo "${1#*=}" && return ;;
    esac
    shift
  done
}

# The Debian packages for compiling for another processor than this machine's; nothing for its own or an unknown one. $1: Debian's name of the processor.
cross_packages() {
  [ "$1" != "$(dpkg --print-architecture)" ] || return 0
  case $1 in
    arm64) echo gcc-aarch64-linux-gnu libc6-dev-arm64-cross ;;
    amd64) echo gcc-x86-64-linux-gnu libc6-dev-amd64-cross ;;
  esac
}

# Installs what compiling for another processor needs. $1: repository root, $2: Debian's name of the processor.
install_cross() {
  packages=$(cross_packages "$2")
  [ -n "$packages" ] || return 0
  missing=$(not_installed $packages)
  if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
      echo "root is needed once, to install:" $missing >&2
      return 1
    fi
    apt-get -q update || return 1
    DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $missing || return 1
  fi
  case $2 in arm64) target=aarch64-unknown-linux-gnu ;; amd64) target=x86_64-unknown-linux-gnu ;; esac
  # Without rustup cargo says itself what it lacks.
  if command -v rustup >/dev/null && ! (cd "$1" && rustup target list --installed) | grep -qx "$target"; then
    (cd "$1" && rustup target add "$target")
  fi
}
