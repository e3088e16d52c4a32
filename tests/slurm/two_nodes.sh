#!/usr/bin/env bash
# A private Slurm of two nodes on this machine, without GPUs: two_nodes.sh start|stop FOLDER. Needs root; installs Debian's
# slurm-wlm and munge where they are missing. `start` writes FOLDER/slurm.conf, for SLURM_CONF. Exit code 3: not possible here.
set -euo pipefail
action=$1 folder=$(realpath -m "$2")
export SLURM_CONF=$folder/slurm.conf
host=$(hostname -s)

cannot() { echo "$*"; exit 3; }

install_slurm() {
  command -v slurmctld >/dev/null && command -v munged >/dev/null && return
  command -v apt-get >/dev/null || cannot "no slurmctld, and no apt-get to install it with"
  { timeout 60 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 240 apt-get install -y -qq --no-install-recommends slurm-wlm munge; } \
    >"$folder/apt.log" 2>&1 || cannot "apt-get could not install slurm-wlm ($(tail -n1 "$folder/apt.log"))"
}

start_munge() {
  munge -n >/dev/null 2>&1 && return
  mkdir -p /run/munge /var/log/munge /var/lib/munge
  [ -f /etc/munge/munge.key ] || { mkdir -p /etc/munge; dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 2>/dev/null; }
  chmod 400 /etc/munge/munge.key
  chown -R munge:munge /etc/munge /run/munge /var/log/munge /var/lib/munge
  runuser -u munge -- munged || cannot "munged does not start"
}

write_conf() {
  local port node
  mkdir -p "$folder/state" "$folder/log"
  {
    # linuxproc and no task plugin: no cgroups are needed. FORCE: more ranks than cores may run
    printf '%s\n' ClusterName=megasink "SlurmctldHost=$host(127.0.0.1)" SlurmctldPort=27817 SlurmUser=root SlurmdUser=root \
      AuthType=auth/munge MpiDefault=none ReturnToService=2 SlurmdTimeout=10 \
      ProctrackType=proctrack/linuxproc TaskPlugin=task/none SelectType=select/cons_tres SelectTypeParameters=CR_Core \
      "StateSaveLocation=$folder/state" "SlurmdSpoolDir=$folder/spool.%n" "SlurmctldPidFile=$folder/slurmctld.pid" \
      "SlurmdPidFile=$folder/slurmd.%n.pid" "SlurmctldLogFile=$folder/log/slurmctld.log" "SlurmdLogFile=$folder/log/%n.log"
    for node in sink1:27818 sink2:27819; do
      port=${node#*:}
      echo "NodeName=${node%:*} NodeHostname=$host NodeAddr=127.0.0.1 Port=$port CPUs=2 RealMemory=4000"
    done
    echo "PartitionName=main Nodes=sink1,sink2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4"
  } >"$SLURM_CONF"
  grep -q '^127.0.0.1 sink1 sink2$' /etc/hosts || echo '127.0.0.1 sink1 sink2' >>/etc/hosts
}

stop() {
  local file
  for file in "$folder"/slurmd.sink1.pid "$folder"/slurmd.sink2.pid "$folder"/slurmctld.pid; do
    [ ! -f "$file" ] || kill "$(cat "$file")" 2>/dev/null || true
  done
}

case $action in
start)
  [ "$(id -u)" = 0 ] || cannot "a Slurm of our own needs root"
  mkdir -p "$folder"
  install_slurm
  start_munge
  write_conf
  if ! { slurmctld && slurmd -N sink1 && slurmd -N sink2; }; then cannot "Slurm's daemons do not start; see $folder/log"; fi
  for _ in $(seq 100); do
    [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ] && exit 0
    sleep 0.2
  done
  stop
  cannot "the nodes did not become idle; see $folder/log"
  ;;
stop) stop ;;
esac
