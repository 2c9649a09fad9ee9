#!/usr/bin/env bash
# A SLURM cluster of this one machine, from Debian's packages, and the tests of hydra/launcher=submitit_slurm on it.
#
#   make install && sudo tests/cluster/slurm.sh
#
# Needs root, to install slurm-wlm and munge where they are missing (they stay) and to start their daemons (which are
# stopped at the end). A SLURM that runs here already is left alone: its ports and files are others.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ "$(id -u)" != 0 ]; then
    echo "error: the daemons of SLURM need root: sudo $0" >&2
    exit 2
fi
if [ ! -x .venv/bin/python ]; then
    echo "error: there is no .venv: make install" >&2
    exit 2
fi
if ! command -v sbatch slurmctld slurmd munged >/dev/null; then
    if ! command -v apt-get >/dev/null; then
        echo "error: install SLURM (slurmctld, slurmd, sbatch) and munge; only Debian's apt-get is known here" >&2
        exit 2
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
fi

cluster=$(mktemp -d)
host=$(hostname -s)
mkdir -p "$cluster"/{ctld,d,log,run}
started_munge=
stop() {
    for daemon in slurmd slurmctld; do
        if [ -s "$cluster/run/$daemon.pid" ]; then kill "$(cat "$cluster/run/$daemon.pid")" 2>/dev/null || true; fi
    done
    if [ -n "$started_munge" ] && [ -s /run/munge/munged.pid ]; then kill "$(cat /run/munge/munged.pid)" || true; fi
    sleep 1
    rm -rf "$cluster"
}
trap stop EXIT

cat > "$cluster/slurm.conf" <<CONF
ClusterName=xtransplant
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$cluster/ctld
SlurmdSpoolDir=$cluster/d
SlurmctldPidFile=$cluster/run/slurmctld.pid
SlurmdPidFile=$cluster/run/slurmd.pid
SlurmctldLogFile=$cluster/log/slurmctld.log
SlurmdLogFile=$cluster/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(($(awk '/MemTotal/{print int($2/1024)}' /proc/meminfo) - 512)) State=UNKNOWN
PartitionName=debug Nodes=$host Default=YES MaxTime=60 State=UP
CONF
export SLURM_CONF="$cluster/slurm.conf"

if ! munge -n >/dev/null 2>&1; then
    mkdir -p /run/munge
    chown munge:munge /run/munge
    chmod 755 /run/munge
    runuser -u munge -- "$(command -v munged)"
    started_munge=yes
fi
"$(command -v slurmctld)" -f "$SLURM_CONF"
"$(command -v slurmd)" -f "$SLURM_CONF"
for _ in $(seq 100); do
    if [ "$(sinfo -h -o %T)" = idle ]; then break; fi
    sleep 0.2
done
sinfo
if [ "$(sinfo -h -o %T)" != idle ]; then
    tail -n 20 "$cluster"/log/*.log >&2
    echo "error: the machine is not idle in its own cluster" >&2
    exit 1
fi

OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false XTRANSPLANT_TEST_SLURM=1 \
    .venv/bin/python -m pytest tests/integration/test_launchers.py -k slurm -v "$@"
