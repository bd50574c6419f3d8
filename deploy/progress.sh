# shellcheck shell=bash
# Shared by quickstart.sh and tests/run.sh: a long command with its output in a log and a sign of life on the terminal.
# To be sourced. Whoever sources it calls end_children from its EXIT trap.

children=() # process groups of ours that may still run

# Starts COMMAND in a process group of its own; its id is in $child.
start() {
  setsid "$@" </dev/null &
  child=$!
  children+=("$child")
}

end_children() {
  local child
  for child in "${children[@]}"; do kill -- "-$child" 2>/dev/null || true; done
  for child in "${children[@]}"; do wait "$child" 2>/dev/null || true; done
}

# with_progress LOG COMMAND...: the status of COMMAND, whose output goes to LOG. While it lasts, LOG's last line is
# shown: every second on a terminal, else after two seconds and then every fifteen.
with_progress() {
  local log=$1 began=$SECONDS ticks=0 status=0
  shift
  start "$@" >"$log" 2>&1
  while kill -0 "$child" 2>/dev/null; do
    sleep 0.2
    ticks=$((ticks + 1))
    if [ -t 1 ]; then
      [ $((ticks % 5)) -ne 0 ] || printf '\r\033[K  %3d s  %s' $((SECONDS - began)) "$(last_line "$log")"
    elif [ "$ticks" -eq 10 ] || [ $((ticks % 75)) -eq 0 ]; then
      printf '  %3d s  %s\n' $((SECONDS - began)) "$(last_line "$log")"
    fi
  done
  wait "$child" || status=$?
  unset 'children[-1]'
  [ ! -t 1 ] || printf '\r\033[K'
  return "$status"
}

last_line() { tail -n 1 "$1" | tr -d '\r' | cut -c 1-100; }

# As many compilers at once as there are processors, but no more than memory allows: the largest unit takes 0.9 GB, and
# the sanitizers' a little more.
parallel_jobs() {
  local processors memory_jobs
  processors=$(nproc)
  memory_jobs=$(awk '/^MemAvailable:/ {print int($2 / 1400000)}' /proc/meminfo)
  [ "$memory_jobs" -ge 1 ] || memory_jobs=1
  echo $((processors < memory_jobs ? processors : memory_jobs))
}
