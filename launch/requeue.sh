#!/usr/bin/env bash
# The end of a training's batch script: puts the job back into the queue, where that can help.
#
#   requeue.sh STATUS RUN FOLDER REQUEUES FAILURES
#
# STATUS is that of the ranks: 0, done; 75, asked to stop, and saved; 138, 140, 143, ended by
# SIGUSR1, SIGUSR2 or SIGTERM while it was still starting. All else is a failure, as a rank that
# was killed. RUN holds the checkpoints, FOLDER the script and its log.
#
# Slurm itself does the same for nodes that fail and for jobs that it preempts, and ends this script
# then before it says anything. A job that was cancelled is ended in the same way.
status=$1 run=$2 folder=$3 requeues=$4 failures=$5
restarts=${SLURM_RESTART_COUNT:-0}
latest=$(cat "$run/checkpoints/latest" 2>/dev/null || echo nothing)

end() {
    echo "launch: $*"
    exit "$status"
}

[ "$status" != 0 ] || exit 0
[ ! -e "$folder/cancelled" ] || end "cancelled; the same command goes on from $latest"
if [ "$status" = 75 ]; then
    why="it was asked to stop (status 75)"
else
    case $status in
    138 | 140 | 143) why="it was asked to stop while it was starting (status $status)" ;;
    *)
        [ "$latest" != nothing ] ||
            end "the run failed (status $status) before it had a checkpoint: not started again"
        why="it failed (status $status) after $latest"
        ;;
    esac
    # Those in a row since the same checkpoint: their lines are all alike.
    echo "$latest" >>"$folder/failures"
    count=$(tac "$folder/failures" | awk -v latest="$latest" '$0 != latest { exit } { n++ } END { print n }')
    [ "$count" -le "$failures" ] || end "$why, $count times in a row: not started again"
fi
[ "$restarts" -lt "$requeues" ] || end "$why, after $restarts requeues: not started again"
echo "launch: $why: back to the queue, requeue $((restarts + 1)) of at most $requeues"
scontrol requeue "$SLURM_JOB_ID" || end "scontrol requeue failed: start it again by hand"
exit "$status"
