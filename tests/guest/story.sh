#!/usr/bin/env bash
# The story's host: nginx with Lua in front of Redis, one Redis connection per request, and a table too small for it.
# Only for a throw-away VM: it lowers nf_conntrack_max.
# usage: story.sh up [MS_FOR_REDIS] | fill PERCENT | load [SECONDS_FULL] | go_on | down
# STORY_MAX=N sets another limit; with STORY_KEEPALIVE=1 the Lua code does what it forgot in the story.
set -euo pipefail

home=/run/ctwatch-story
limit=${STORY_MAX:-2000}
release='client:close()'
if [ "${STORY_KEEPALIVE:-0}" = 1 ]; then
  release='client:set_keepalive(10000, 100)'
fi

value() { cat "/proc/sys/net/netfilter/nf_conntrack_$1"; }

wait_for() { # wait_for WHAT COMMAND...
  local what=$1 tries=0
  shift
  until "$@" 2>/dev/null; do
    tries=$((tries + 1))
    if [ "$tries" -gt 300 ]; then
      echo "$what did not come up; $home/error.log:" >&2
      tail -5 "$home/error.log" >&2 || true
      exit 1
    fi
    sleep 0.1
  done
}

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1"); }

write_config() {
  local modules=/usr/lib/nginx/modules
  mkdir -p "$home/tmp"
  cat > "$home/nginx.conf" <<CONF
user root;
worker_processes 1;
pid $home/nginx.pid;
error_log $home/error.log error;
load_module $modules/ndk_http_module.so;
load_module $modules/ngx_http_lua_module.so;
events { worker_connections 1024; }
http {
  access_log off;
  client_body_temp_path $home/tmp/body;
  proxy_temp_path $home/tmp/proxy;
  fastcgi_temp_path $home/tmp/fastcgi;
  uwsgi_temp_path $home/tmp/uwsgi;
  scgi_temp_path $home/tmp/scgi;
  lua_package_path '/usr/share/lua/5.1/?.lua;;';
  lua_socket_log_errors off;
  server {
    listen 127.0.0.1:80;
    location / {
      default_type text/plain;
      content_by_lua_block {
        local redis = require "nginx.redis"
        local client = redis:new()
        client:set_timeout($patience)
        local ok, err = client:connect("127.0.0.1", 6379)
        if not ok then
          ngx.log(ngx.ERR, "redis time out: ", err)
          -- Not 500: nginx would close the client's connection, and port 80 would suffer as well.
          return ngx.exit(503)
        end
        client:incr("visits")
        -- What the story's code forgot is client:set_keepalive(10000, 100) here.
        $release
        ngx.say("hello")
      }
    }
  }
}
CONF
}

up() { # up PATIENCE: how many milliseconds the Lua code waits for Redis
  local patience=$1
  write_config
  ip link set lo up
  nft -f - <<'RULES'
table inet story {
  chain input {
    type filter hook input priority 0; policy accept;
    ct state established,related accept
    ct state invalid drop
    iifname "lo" accept
  }
}
RULES
  redis-server --bind 127.0.0.1 --port 6379 --save "" --appendonly no --daemonize yes \
    --dir "$home" --pidfile "$home/redis.pid" --logfile "$home/redis.log" > /dev/null
  wait_for redis listens 6379
  nginx -p "$home" -c "$home/nginx.conf" -e "$home/error.log"
  wait_for nginx listens 80
  echo "$limit" > /proc/sys/net/netfilter/nf_conntrack_max
}

drive() { # drive ENTRIES SECONDS: requests until the table holds so many entries, and for some seconds more
  local entries=$1 seconds=$2 tries=0 wrk
  wrk -t1 -c20 -d600s http://127.0.0.1/ > "$home/wrk.txt" 2>&1 &
  wrk=$!
  until [ "$(value count)" -ge "$entries" ]; do
    tries=$((tries + 1))
    if [ "$tries" -gt 1800 ]; then
      echo "the table holds $(value count) of $limit entries after three minutes" >&2
      break
    fi
    sleep 0.1
  done
  sleep "$seconds"
  kill -INT "$wrk" 2>/dev/null || true
  wait "$wrk" || true
  cat "$home/wrk.txt"
}

go_on() { # some twenty requests a second from now on: enough to keep the table full, and to leave a CPU for others
  echo 'function delay() return 200 end' > "$home/slowly.lua"
  wrk -t1 -c4 -d86400s -s "$home/slowly.lua" http://127.0.0.1/ > /dev/null 2>&1 &
}

down() {
  for service in nginx redis; do
    if [ -s "$home/$service.pid" ]; then
      kill "$(cat "$home/$service.pid")" 2>/dev/null || true
    fi
  done
}

case ${1:-} in
  up) up "${2:-1000}" ;;
  fill) drive $((limit * ${2:-80} / 100)) 0 ;;
  go_on) go_on ;;
  load) drive $((limit * 99 / 100)) "${2:-6}" ;;
  down) down ;;
  *)
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
    ;;
esac
