#!/usr/bin/env bash
# Builds the image of deploy/Dockerfile and asks it something.
#
#   deploy/image.sh DEMO [TAG]
#
# DEMO: the folder of a finished run (`ascribe demo --out DEMO`). Needs docker or, where no daemon runs, buildah (no daemon, root or a
# user namespace; ISOLATION=chroot, the default, needs no further privileges), python3, and about 8 GB. The images that the Dockerfile
# starts from are pulled, unless they are in the local store. SKIP_BUILD=1 asks the image that is there. Prints one JSON line.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ $# -ge 1 ] || { sed -n '2,9p' "${BASH_SOURCE[0]}"; exit 2; }
demo=$(cd "$1" && pwd)
tag=${2:-ascribe}
isolation=${ISOLATION:-chroot}
port=${PORT:-18080}
work=$(mktemp -d)
container=
server=
engine=
if docker info > /dev/null 2>&1; then engine=docker; elif command -v buildah > /dev/null; then engine=buildah; fi
[ -n "$engine" ] || { echo "expected docker with its daemon, or buildah; found neither" >&2; exit 1; }

end() {
  [ -z "$server" ] || { kill -TERM "$server" 2> /dev/null && wait "$server"; } || true
  case $engine in
    docker) [ -z "$container" ] || docker rm -f "$container" > /dev/null ;;
    buildah) [ -z "$container" ] || buildah rm "$container" > /dev/null ;;
  esac
  rm -rf "$work"
}
trap end EXIT

began=$(date +%s)
if [ -z "${SKIP_BUILD:-}" ]; then
  case $engine in
    docker) docker build -f "$root/deploy/Dockerfile" -t "$tag" "$root" >&2 ;;
    buildah) buildah bud --isolation "$isolation" -f "$root/deploy/Dockerfile" -t "$tag" "$root" >&2 ;;
  esac
fi
built=$(($(date +%s) - began))

# As the image says: its user, its environment, its entry point; anonymous callers are allowed here alone, on this machine's loopback.
case $engine in
  docker)
    container=$(docker run -d -e ASCRIBE_SERVE_ALLOW_ANONYMOUS=true -v "$demo:/data/demo:ro" -p "127.0.0.1:$port:8080" "$tag")
    ;;
  buildah)
    container=$(buildah from "$tag")
    mapfile -t entry < <(buildah inspect --type image "$tag" | python3 -c 'import json,sys; print("\n".join(json.load(sys.stdin)["OCIv1"]["config"]["Entrypoint"]))')
    # Its user writes the state. A chroot has this machine's network: the port is given here.
    mkdir -m 777 "$work/state"
    chmod 755 "$work"
    buildah run --isolation "$isolation" -v "$demo:/data/demo:ro" -v "$work/state:/state" --env "ASCRIBE_SERVE_LISTEN=127.0.0.1:$port" \
      --env ASCRIBE_SERVE_ALLOW_ANONYMOUS=true "$container" -- "${entry[@]}" > "$work/first" 2> "$work/log" &
    server=$!
    ;;
esac

python3 - "$port" "$built" "$engine" << 'PYTHON'
import json, sys, time, urllib.request

port, built, engine = sys.argv[1:]
base = f"http://127.0.0.1:{port}"

def get(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(base + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)

for _ in range(240):
    try:
        health = get("/healthz")
        break
    except OSError:
        time.sleep(0.5)
else:
    sys.exit("no answer from /healthz within two minutes")
question = {"prompt": "In the beginning", "completion": " was the Word, and the Word was with God", "k": 3, "receipt": True}
answer = get("/v1/attributions", question)
assert len(answer["hits"]) == 3 and answer["shares"] and 0 < answer["coverage"] <= 1, answer
receipt = get("/v1/receipts/" + answer["id"])
total = sum(share["share"] for share in answer["shares"])
assert abs(total - 1) < 1e-9, total
print(json.dumps({"engine": engine, "seconds_to_build": int(built), "health": health, "best": answer["shares"][0]["dataset"],
                  "verdict": answer["verdict"], "hits": len(answer["hits"]), "receipt": sorted(receipt)}))
PYTHON
