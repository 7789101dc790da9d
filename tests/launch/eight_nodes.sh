#!/bin/bash

# Parameters
#SBATCH --account=vision
#SBATCH --constraint=h100
#SBATCH --cpus-per-task=12
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --job-name=hnpretrain-vit-b-16
#SBATCH --mem=1024000MB
#SBATCH --nice=100
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/vit-b-16/launch/001/%j.log
#SBATCH --partition=gpu
#SBATCH --qos=high
#SBATCH --requeue
#SBATCH --signal=USR2@180
#SBATCH --time=1440

# setup
module load cuda/12.8
export NCCL_DEBUG=WARN
export PYTHONSAFEPATH=1
export SUBMITIT_LOG_LEVEL=WARNING
export NCCL_SOCKET_IFNAME=ib0
export WANDB_API_KEY=***
export PYTHONPATH=/shared/runs/vit-b-16/launch/001/code${PYTHONPATH:+:$PYTHONPATH}
blind=$(srun --nodes=$SLURM_JOB_NUM_NODES --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1 --container-image=/images/torch.sqsh --container-mounts=/shared bash -c 'for file; do test -e "$file" || echo $SLURMD_NODENAME: ${file%/*}; done' look /shared/runs/vit-b-16/launch/001/config.yaml /shared/runs/vit-b-16/.launched) || exit 2
[ -z "$blind" ] || { echo error: not seen on $blind: set output, or launch.folder, to one that all nodes share; exit 2; }
[ ! -e /shared/runs/vit-b-16/launch/001/cancelled ] || exit 0

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/vit-b-16/launch/001/%j_%t_log.out --cpus-per-task=12 --output=/shared/runs/vit-b-16/launch/001/%j.log --open-mode=append --label --kill-on-bad-exit=1 --container-image=/images/torch.sqsh --container-mounts=/shared python -u -m submitit.core._submit /shared/runs/vit-b-16/launch/001


# teardown
bash /shared/runs/vit-b-16/launch/001/code/launch/requeue.sh $? /shared/runs/vit-b-16 /shared/runs/vit-b-16/launch/001 100 3

# What each rank gets beside the exports above:
#   WORLD_SIZE=64 LOCAL_WORLD_SIZE=8
#   RANK=0..63 LOCAL_RANK=0..7
#   MASTER_ADDR=the first of the job's nodes
#   MASTER_PORT=20000..31999, the same for a job id
#   OMP_NUM_THREADS=12, unless it is set
