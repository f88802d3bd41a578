#!/usr/bin/env bash
# Starts the platform in the background, waits until it is ready and says where it runs. Safe to call again.
set -euo pipefail
arco=$(realpath "$1")
data=${2:-/var/lib/arco}
shift $(( $# < 2 ? $# : 2 ))

running() { # whether the server that server.json names is alive and ready
  [ -f "$data/server.json" ] || return 1
  local pid console
  pid=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' "$data/server.json" | head -1)
  console=$(sed -n 's/.*"console": *"\([^"]*\)".*/\1/p' "$data/server.json" | head -1)
  [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null && curl -fsS --max-time 5 -o /dev/null "http://$console/healthz" 2>/dev/null
}

tell() {
  local context=""
  [ "$data" = /var/lib/arco ] || context=" --context $data/admin.toml"
  value() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "$data/server.json" | head -1; }
  local urls # as the server told them at its start
  urls=$(sed -n 's/.*applications at \(http[^,]*\),.*/\1/p' "$data/server.log" 2>/dev/null | tail -1)
  cat <<END
Arco is running (data in $data, log in $data/server.log).
  applications   ${urls:-http://$(value http)}   (gateway on $(value http))
  console        http://$(value console)
Deploy your first application:
  $arco$context deploy examples/node-express --app demo
Stop it:
  kill \$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' $data/server.json)
END
}

if running; then tell; exit 0; fi
[ "$(id -u)" = 0 ] || { echo "arco needs root to run containers: sudo make run"; exit 1; }
mkdir -p "$data"
rm -f "$data/server.json"
setsid nohup "$arco" server --data-dir "$data" "$@" >>"$data/server.log" 2>&1 </dev/null &
server=$!
for _ in $(seq 3000); do
  if running; then tell; exit 0; fi
  if ! kill -0 "$server" 2>/dev/null; then
    echo "the server ended; the last lines of $data/server.log:" >&2
    tail -15 "$data/server.log" >&2
    exit 1
  fi
  sleep 0.1
done
echo "the server is not ready after 300 s; see $data/server.log" >&2
exit 1
