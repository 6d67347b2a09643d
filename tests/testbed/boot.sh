#!/bin/bash
# The first process of a testbed host, in its own namespaces: makes the machine, starts its daemons, waits.
#
# Takes from its environment: HOST (its name), DISK (a directory, or the image file of an ext4 file system, that keeps
# what a reboot keeps), MOUNT (an empty directory), DOCKER (running, stopped or absent), NETWORK (lines "interface
# address/length"), MEMORY (bytes; empty: as the machine has), AUTHORIZED_KEY.
set -eu
exec 2>&1

root=$MOUNT/root
if [ -f "$DISK" ]; then
    mkdir -p "$MOUNT/disk"
    mount -o loop "$DISK" "$MOUNT/disk"
    DISK=$MOUNT/disk
fi
first_boot=$([ -e "$DISK/upper" ] || echo yes)
mkdir -p "$root" "$DISK"/{upper,work,own}

# Of this machine, a host sees the operating system, and neither what was added to it nor anybody's files.
if [ "$first_boot" ]; then
    for path in /* /.[!.]*; do
        case $path in
        /bin | /boot | /dev | /etc | /home | /lib | /lib?* | /media | /mnt | /opt | /proc) ;;
        /root | /run | /sbin | /srv | /sys | /tmp | /usr | /var) ;;
        *) mknod "$DISK/upper$path" c 0 0 ;;
        esac
    done
fi
mount -t overlay host -o "lowerdir=/,upperdir=$DISK/upper,workdir=$DISK/work" "$root"
for path in /home /media /mnt /opt /root /srv /usr/local /var/tmp /var/lib/docker /etc/ssh /etc/docker; do
    mkdir -p "$DISK/own$path" "$root$path"
    mount --bind "$DISK/own$path" "$root$path"
done
chmod 700 "$root/root"
chmod 1777 "$root/var/tmp"

mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o nosuid,nodev,noexec sysfs "$root/sys"
mount -t tmpfs -o nosuid,nodev,mode=755 run "$root/run"
mount -t tmpfs -o nosuid,nodev tmp "$root/tmp"
mount -t tmpfs -o nosuid,mode=755 dev "$root/dev"
mkdir -p "$root"/dev/{pts,shm,mqueue} "$root"/run/{sshd,lock}
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o nosuid,nodev shm "$root/dev/shm"
mount -t mqueue mqueue "$root/dev/mqueue"
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 fuse:10:229; do
    IFS=: read -r name major minor <<<"$device"
    mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for number in 0:stdin 1:stdout 2:stderr; do
    ln -s "/proc/self/fd/${number%:*}" "$root/dev/${number#*:}"
done

# Its control groups: those that this machine has, seen from the host's own group downwards.
if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    # A group that holds processes cannot hand controllers down, so they move to a leaf.
    mkdir "$root/sys/fs/cgroup/init"
    echo $$ >"$root/sys/fs/cgroup/init/cgroup.procs"
    sed 's/[^ ]*/+&/g' "$root/sys/fs/cgroup/cgroup.controllers" >"$root/sys/fs/cgroup/cgroup.subtree_control"
else
    hierarchies=$(grep -E '^[^ ]+ /sys/fs/cgroup/[^ ]+ cgroup2? ' /proc/self/mounts)
    mount -t tmpfs -o mode=755 cgroup "$root/sys/fs/cgroup"
    while read -r _ path kind options _; do
        options=$(echo "$options" | sed 's/^\(rw\|ro\)\(,\|$\)//; s/\(relatime\|nosuid\|nodev\|noexec\)\(,\|$\)//g')
        mkdir -p "$root$path"
        mount -t "$kind" ${options:+-o "$options"} cgroup "$root$path"
    done <<<"$hierarchies"
fi
if [ "$MEMORY" ]; then
    sed "s/^MemTotal:.*/MemTotal: $((MEMORY / 1024)) kB/; s/^MemFree:.*/MemFree: $((MEMORY / 1024)) kB/;
        s/^MemAvailable:.*/MemAvailable: $((MEMORY / 1024)) kB/" /proc/meminfo >"$root/run/meminfo"
    mount --bind "$root/run/meminfo" "$root/proc/meminfo"
fi

cd "$root"
mkdir -p run/old-root
pivot_root . run/old-root
umount -l /run/old-root
rmdir /run/old-root
hostname "$HOST"

if [ "$first_boot" ]; then
    rm -f /etc/{resolv.conf,hosts,hostname,machine-id,environment,localtime} /var/log/{dockerd,sshd}.log
    : >/etc/resolv.conf
    : >/etc/environment
    echo "$HOST" >/etc/hostname
    printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$HOST" >/etc/hosts
    tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
    mkdir -m 700 /root/.ssh
    echo "$AUTHORIZED_KEY" >/root/.ssh/authorized_keys
    chmod 600 /root/.ssh/authorized_keys
    ssh-keygen -q -t ed25519 -N '' -C "$HOST" -f /etc/ssh/ssh_host_ed25519_key
    cat >/etc/ssh/sshd_config <<'CONFIG'
HostKey /etc/ssh/ssh_host_ed25519_key
UsePAM no
UseDNS no
PermitRootLogin yes
PasswordAuthentication yes
KbdInteractiveAuthentication no
AllowTcpForwarding yes
AllowStreamLocalForwarding yes
PrintMotd no
Subsystem sftp /usr/lib/openssh/sftp-server
CONFIG
    if [ "$DOCKER" = absent ]; then
        rm -f /usr/bin/{docker,containerd,ctr,runc} /usr/sbin/{dockerd,docker-proxy,runc}
    fi
fi

# The network: each cable is there when the line on standard input has come.
read -r _
ip link set lo up
while read -r interface address; do
    ip address add "$address" dev "$interface"
    ip link set "$interface" up
done <<<"$NETWORK"

/usr/sbin/sshd -D -e </dev/null >>/var/log/sshd.log 2>&1 &
if [ "$DOCKER" = running ]; then
    # Nameservers would be guessed, and asked in vain, for containers of a host that has none.
    dockerd --dns 127.0.0.1 --insecure-registry 10.0.0.0/8 </dev/null >>/var/log/dockerd.log 2>&1 &
fi

# The end of the file comes when the tests are over, whichever way. Until then this shell reaps orphans.
read -r _ || true
