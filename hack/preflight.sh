# Sourced by the scripts of this folder: what must be there before anything may be installed. Bash, functions only.
# Each lack is one line with the command that ends it, and nothing is changed while there is one.

lacks=0
lack() { # $1: what is missing, $2: the command
  echo "missing: $1; run: $2" >&2
  lacks=$((lacks + 1))
}

# True if version $1 is at least $2.
at_least() {
  [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# Debian's major version, or `testing` for one without a number; empty on anything else. $1: os-release file.
debian_version() {
  (
    unset ID VERSION_ID
    . "$1" && [ "${ID:-}" = debian ] && echo "${VERSION_ID:-testing}"
  )
}

# The toolchain that rust-toolchain.toml names. $1: repository root.
rust_channel() {
  sed -n 's/^channel = "\(.*\)"/\1/p' "$1/rust-toolchain.toml"
}

# $1: repository root, rest: the command line of the script. Fails after it has named all that is missing.
preflight() {
  local root=$1 debian rust go go_needed=1.26.0
  shift
  [ "$(id -u)" = 0 ] || lack "root, for network namespaces and the guests' networks" "sudo -E env PATH=\$PATH $*"

  debian=$(debian_version /etc/os-release) || debian=
  case $debian in
    testing | 1[2-9] | [2-9][0-9]) ;;
    *) lack "Debian 12 or newer" "docker run --privileged -it -v $root:/src -w /src debian:12 bash" ;;
  esac

  command -v git >/dev/null || lack "git" "apt-get install -y git"

  rust=$(rust_channel "$root")
  if ! command -v cargo >/dev/null; then
    lack "Rust $rust" "curl --proto '=https' -sSf https://sh.rustup.rs | sh -s -- -y --default-toolchain $rust -c rustfmt -c clippy && . ~/.cargo/env"
  elif ! command -v rustup >/dev/null && [ "$(rustc --version | cut -d' ' -f2)" != "$rust" ]; then
    lack "Rust $rust (rustc is $(rustc --version | cut -d' ' -f2) and there is no rustup)" "curl --proto '=https' -sSf https://sh.rustup.rs | sh -s -- -y"
  fi

  go=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) || go=
  if [ -z "$go" ] || ! at_least "${go#go}" "$go_needed"; then
    lack "Go $go_needed or newer (found: ${go:-none})" \
      "curl -sSfL https://go.dev/dl/go$go_needed.linux-$(dpkg --print-architecture 2>/dev/null).tar.gz | tar -C /usr/local -xz && export PATH=/usr/local/go/bin:\$PATH"
  fi

  [ -c /dev/net/tun ] || lack "/dev/net/tun, for the guests' networks" "mkdir -p /dev/net && mknod /dev/net/tun c 10 200"
  [ "$lacks" = 0 ]
}

# Installs the toolchain that rust-toolchain.toml names if rustup has it not. $1: repository root.
install_toolchain() {
  local rust
  rust=$(rust_channel "$1")
  if command -v rustup >/dev/null && ! rustup toolchain list | grep -q "^$rust-"; then
    rustup toolchain install "$rust" --profile minimal --component rustfmt --component clippy
  fi
}
