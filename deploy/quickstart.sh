#!/usr/bin/env bash
# From a bare Debian 12 to answers: installs what is missing, builds, serves the demo model, asks every domain over gRPC
# and HTTP, cuts one domain out, proves that the cut gives the same bits, serves the cut and asks it the same prompt.
#
#   deploy/quickstart.sh          some minutes; a second run takes seconds
#   deploy/quickstart.sh --keep   leaves the server running and prints how to talk to it
#
# Writes only into build/ and a temporary folder, which it removes again.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source deploy/progress.sh
bin=build/release/bin
model=deploy/demo
cut_domain=cpp
max_tokens=48
seed=7

domains=(zh en cpp python)
declare -A prompts=(
  [zh]='如果文件不存在，'
  [en]='The king said to the people,'
  [cpp]=$'#include <vector>\n\nint main() {\n'
  [python]=$'def test_sum(self):\n'
)

keep=false
case ${1-} in
  '') ;;
  --keep) keep=true ;;
  -h | --help) sed -n '2,8s/^# \{0,1\}//p' deploy/quickstart.sh && exit 0 ;;
  *) echo "usage: deploy/quickstart.sh [--keep]" >&2 && exit 2 ;;
esac

# Loopback is never asked through a proxy.
export no_proxy=127.0.0.1 NO_PROXY=127.0.0.1

work=$(mktemp -d "${TMPDIR:-/tmp}/scion-quickstart.XXXXXX")
clean_up() {
  local status=$?
  trap - EXIT
  trap '' INT TERM HUP
  end_children
  rm -rf "$work"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

fail() {
  echo "quickstart: $*" >&2
  exit 1
}

# run_step TITLE COMMAND...: its output goes to $work/step.log, whose end is shown if it fails.
run_step() {
  local title=$1 began=$SECONDS
  shift
  echo "$title"
  if ! with_progress "$work/step.log" "$@"; then
    tail -n 40 "$work/step.log" >&2
    fail "this failed: $title"
  fi
  [ $((SECONDS - began)) -lt 2 ] || printf '  done in %d s\n' $((SECONDS - began))
}

install_packages() {
  local missing
  missing=$(deploy/packages.sh --missing build)
  [ -n "$missing" ] || return 0
  if [ "$(id -u)" -eq 0 ]; then
    run_step "Installing Debian packages, and what they depend on: ${missing//$'\n'/ }" deploy/packages.sh build
  else
    deploy/packages.sh build # says what to do
  fi
}

build_programs() {
  if [ ! -f build/release/build.ninja ]; then
    run_step 'Configuring build/release' cmake --preset release -DSCION_BUILD_TESTS=OFF
  fi
  run_step "Building moe-serve, moe-client and moe-extract into $bin" \
    cmake --build build/release -j "$(parallel_jobs)" --target moe-serve moe-client moe-extract
}

# start_server NAME MODEL: sets $http and $grpc to its addresses.
start_server() {
  local name=$1 ready began=$SECONDS
  echo "Starting moe-serve on $2"
  mkdir -p build/quickstart
  start "$bin/moe-serve" "$2" --host 127.0.0.1 --http-port 0 --grpc-port 0 \
    >"build/quickstart/$name.out" 2>"build/quickstart/$name.log"
  until ready=$(grep '^moe-serve: ready ' "build/quickstart/$name.out"); do
    kill -0 "$child" 2>/dev/null || { cat "build/quickstart/$name.log" >&2 && fail 'moe-serve ended'; }
    [ $((SECONDS - began)) -lt 60 ] || fail "moe-serve was not ready after 60 s, see build/quickstart/$name.log"
    sleep 0.1
  done
  read -r _ _ http grpc <<<"$ready"
  http=${http#http=} grpc=${grpc#grpc=}
  echo "  ready: http://$http, gRPC at $grpc"
}

# ask DOMAIN: asks the server at $http and $grpc the domain's prompt, the same way over both; sets $text and
# $tokens_per_second (of this one request, over HTTP, prompt included).
ask() {
  local domain=$1 prompt=${prompts[$1]} body answer over_grpc seconds
  over_grpc=$("$bin/moe-client" generate --address "$grpc" --domain "$domain" --prompt "$prompt" \
    --max-tokens "$max_tokens" --seed "$seed" --json | jq -c .text)
  body=$(jq -n --arg domain "$domain" --arg prompt "$prompt" --argjson max_tokens "$max_tokens" \
    --argjson seed "$seed" '{$domain, $prompt, $max_tokens, $seed}')
  answer=$work/answer.json
  seconds=$(curl -sS --fail-with-body --max-time 60 -H 'Content-Type: application/json' -d "$body" -o "$answer" \
    -w '%{time_total}' "http://$http/v1/completions") || { cat "$answer" >&2 && fail "HTTP request for $domain"; }
  text=$(jq -c '.choices[0].text' "$answer")
  [ "$text" = "$over_grpc" ] || fail "$domain: gRPC said $over_grpc, HTTP said $text"
  tokens_per_second=$(jq --argjson seconds "$seconds" '.usage.completion_tokens / $seconds | round' "$answer")
}

# row NAME DOMAIN TEXT TOKENS_PER_SECOND: a row of the summary, prompt and text on one line of 84 columns.
row() {
  local line
  line=$(jq -rn --arg prompt "${prompts[$2]}" --argjson text "$3" '
    ($prompt + "|" + $text) | gsub("\\s+"; " ") as $line
    | [foreach ($line | explode[]) as $c (0; . + (if $c >= 11904 then 2 else 1 end); select(. <= 84) | $c)] | implode')
  printf '  %-10s %6s  %s\n' "$1" "$4" "$line"
}

install_packages
build_programs
start_server demo "$model"

summary=$work/summary
echo "Asking every domain over gRPC and HTTP"
for domain in "${domains[@]}"; do
  ask "$domain"
  row "$domain" "$domain" "$text" "$tokens_per_second" >>"$summary"
  [ "$domain" != "$cut_domain" ] || whole_text=$text
done
whole_http=$http
whole_grpc=$grpc
whole_server=$child

cut=$work/demo-$cut_domain
run_step "Cutting $cut_domain out of $model and verifying the cut" \
  "$bin/moe-extract" "$model" --domain "$cut_domain" -o "$cut"
sizes=$(sed -n "s/^.*: domains $cut_domain of .*, \(.*\) of \(.*\) MB\$/whole \2 MB, cut \1 MB/p" "$work/step.log")
verdict=$(grep '^identical: ' "$work/step.log")

start_server "demo-$cut_domain" "$cut"
ask "$cut_domain"
row "$cut_domain (cut)" "$cut_domain" "$text" "$tokens_per_second" >>"$summary"
[ "$text" = "$whole_text" ] || fail "the cut said $text, the whole model $whole_text"

cat <<END

Summary
  domain     tok/s  prompt|text (the same over gRPC and HTTP; seed $seed)
$(cat "$summary")

  The cut says the same as the whole. Sizes: $sizes.
$(fold -s -w 100 <<<"$verdict" | sed 's/^/  /')
END

if $keep; then
  kept=()
  for child in "${children[@]}"; do [ "$child" = "$whole_server" ] || kept+=("$child"); done
  children=("${kept[@]}")
  cat <<END

moe-serve goes on serving $model (process $whole_server, log build/quickstart/demo.log). Talk to it:
  $bin/moe-client generate --address $whole_grpc --domain en --prompt 'Once upon a time' --max-tokens 40
  curl http://$whole_http/v1/completions -H 'Content-Type: application/json' \\
    -d '{"domain": "python", "prompt": "import ", "max_tokens": 40}'
  curl http://$whole_http/metrics
End it:
  kill $whole_server
END
fi
