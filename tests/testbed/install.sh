#!/bin/sh
# Installs what the tests on real hosts need, where that can be done: as root, with apt-get. Elsewhere it says what is
# missing, and those tests skip. Does nothing when nothing is missing.
set -eu

missing=
need() { # command package
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin command -v "$1" >/dev/null ||
        case " $missing " in *" $2 "*) ;; *) missing="$missing $2" ;; esac
}
need dockerd docker.io
need docker docker.io
need docker-registry docker-registry
need sshd openssh-server
need ip iproute2
need nft nftables
need iptables iptables
need pgrep procps
need busybox busybox-static
need debootstrap debootstrap
need sudo sudo
need pebble pebble
need nginx nginx-light
need prometheus prometheus
need chromium chromium
need psql postgresql
need redis-server redis-server
need docker-compose docker-compose

if [ -z "$missing" ]; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Tests on real hosts will skip. They need root and the Debian packages:$missing"
    exit 0
fi

# The packages' daemons are not wanted, only their programs: the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # a list of packages
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; }; then
    echo "Could not install:$missing. Tests on real hosts will skip."
fi
