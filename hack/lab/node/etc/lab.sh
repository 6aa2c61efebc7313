# Sourced by the node's scripts: the search path and what the kernel command line says about this node.
#   lab.n=N           node number: name nodeN, address NET.1N, pods 10.244.N.0/24 (default 1)
#   lab.net=10.10.0   first three bytes of the management network; absent: eth0 stays down
#   lab.tier=2        a bare machine: no containerd, no kubelet
export PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin HOME=/root

argument() { # NAME DEFAULT
  for word in $(cat /proc/cmdline); do
    case $word in "$1="*) echo "${word#*=}"; return ;; esac
  done
  echo "$2"
}
LAB_N=$(argument lab.n 1)
LAB_NET=$(argument lab.net "")
LAB_TIER=$(argument lab.tier 3)

uptime_seconds() { cut -d' ' -f1 /proc/uptime; }

disk() { # SERIAL NAME -> device: the disk with that serial, or the one of that name if it carries no serial
  for d in /sys/block/vd*; do
    serial=$(cat "$d/serial" 2>/dev/null)
    [ "$serial" = "$1" ] || { [ -z "$serial" ] && [ "${d##*/}" = "$2" ]; } && echo "/dev/${d##*/}"
  done
}
