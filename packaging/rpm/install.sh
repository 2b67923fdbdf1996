#!/bin/sh
# Installs vhost-agent from this folder, or removes it; as root:
#
#   ./install.sh             installs, or upgrades what an earlier one installed
#   ./install.sh --remove    removes it; settings and state stay
#
# The program needs glibc 2.28 or newer. Settings that somebody has changed are kept, and the new ones lie beside them as
# FILE.new. For nodes without a package manager: it knows nothing of a deb or an rpm that is installed.
set -eu
umask 022

cd "$(dirname "$0")"

refuse() {
    printf 'install.sh: %s\n' "$1" >&2
    exit 1
}

no_package() {
    if dpkg-query -W vhost-agent >/dev/null 2>&1 || rpm -q vhost-agent >/dev/null 2>&1; then
        refuse 'vhost-agent is installed as a package here: upgrade or remove that one'
    fi
}

put() {
    mkdir -p "${2%/*}"
    # Renamed into place: a program that runs cannot be written over.
    cp "$1" "$2.installing"
    mv "$2.installing" "$2"
}

# The settings are the operator's, unless they are still as installed.
put_settings() {
    given=/usr/share/vhost-agent/given$2
    if [ ! -e "$2" ] || cmp -s "$2" "$given"; then
        put "$1" "$2"
        rm -f "$2.new"
    elif ! cmp -s "$1" "$given"; then
        put "$1" "$2.new"
        printf '%s was changed here, and is kept; the new one is %s.new\n' "$2" "$2"
    fi
    put "$1" "$given"
}

install_files() {
    files/usr/bin/vhost-agent --version >/dev/null || refuse 'the program does not run here; it needs glibc 2.28 on x86_64'
    (cd files && find . -type f) | while read -r file; do
        case $file in
            ./etc/*) put_settings "files/$file" "${file#.}" ;;
            *) put "files/$file" "${file#.}" ;;
        esac
    done
    /usr/libexec/vhost-agent/units installed || true
    systemctl try-restart vhost-agent.service >/dev/null 2>&1 || true
    printf '%s\n' 'vhost-agent is installed. Name the controller and start it:' \
        '  vhost-agent setup --controller ADDRESS' '  systemctl enable --now vhost-agent vhost-agent-pools'
}

remove_files() {
    [ -e /usr/libexec/vhost-agent/units ] || refuse 'vhost-agent is not installed'
    /usr/libexec/vhost-agent/units removing || true
    (cd files && find . -type f ! -path './etc/*') | while read -r file; do
        rm -f "${file#.}"
    done
    rm -rf /usr/libexec/vhost-agent /usr/share/vhost-agent /usr/share/doc/vhost-agent /usr/share/licenses/vhost-agent
    rm -f /etc/logrotate.d/vhost-agent /etc/libvirt/hooks/qemu.d/vhost-agent
    systemctl daemon-reload >/dev/null 2>&1 || true
}

[ "$(id -u)" -eq 0 ] || refuse 'needs root'
no_package
case ${1-} in
    '') install_files ;;
    --remove) remove_files ;;
    *) refuse "unknown option $1" ;;
esac
