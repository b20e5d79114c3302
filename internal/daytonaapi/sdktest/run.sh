#!/usr/bin/env bash
# run.sh: the official Daytona SDKs and Mastra's sandbox, unmodified and from npm,
# against berth with the local provider. Needs go, npm (npx brings Node 24), git,
# and for mounts.mjs the packages of a Debian or Ubuntu machine. The exit code is 0 only if everything passed.
#
#   run.sh            all scripts
#   run.sh NAME...    only these, such as files.mjs
#
# BERTH names the program (../../../bin/berth). The packages of package-lock.json
# are installed once below SDKTEST_CACHE (~/.cache/berth-sdktest).
set -uo pipefail
cd "$(dirname "$0")"
here=$PWD
berth=$(realpath "${BERTH:-../../../bin/berth}") || exit 1

tmp=$(mktemp -d /tmp/berth-sdk.XXXXXX)
server=
registry=
buckets=
cleanup() {
	for pid in $server $registry $buckets; do
		{ kill "$pid" && wait "$pid"; } 2>/dev/null
	done
	chmod -R u+w "$tmp" 2>/dev/null
	# An ordinary user has files with other ids of its own there.
	rm -rf "$tmp" 2>/dev/null || unshare --user --map-auto --map-root-user rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

# The packages, in a directory that is named by what is in it, and renamed to that
# when it is whole: runs at the same time and broken ones do not disturb another.
cache=${SDKTEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/berth-sdktest}
packages=$cache/$(cat package.json package-lock.json | sha256sum | cut -c 1-16)
if [ ! -d "$packages" ]; then
	mkdir -p "$cache"
	new=$(mktemp -d "$cache/new.XXXXXX")
	cp package.json package-lock.json "$new"
	if ! (cd "$new" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error); then
		rm -rf "$new"
		echo "the packages cannot be installed"
		exit 1
	fi
	mv -T "$new" "$packages" 2>/dev/null || rm -rf "$new"
fi
node=$(npx -y -p node@24 -c 'command -v node') || exit 1
export PATH=${node%/*}:$PATH

# await FILE PATTERN PID: the first match, when the program has written it.
await() {
	local found
	for _ in $(seq 600); do
		found=$(grep -om 1 -E "$2" "$1") && { echo "$found"; return; }
		kill -0 "$3" 2>/dev/null || break
		sleep 0.1
	done
	echo "it did not start:" >&2
	cat "$1" >&2
	return 1
}

go build -o "$tmp/registry" ./registry || exit 1
"$tmp/registry" >"$tmp/registry.log" 2>&1 &
registry=$!
images=$(await "$tmp/registry.log" '^127\.0\.0\.1:[0-9]+$' $registry) || exit 1

# A bucket service, as the tests have it (internal/buckettest).
GOBIN="$tmp" CGO_ENABLED=0 go install "github.com/versity/versitygw/cmd/versitygw@$(sed -n 's/.*versity.*@\(v[0-9.]*\)"/\1/p' ../../buckettest/buckettest.go)" || exit 1
mkdir -p "$tmp/buckets/bucket"
read -r s3_port < <(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close() })')
"$tmp/versitygw" --access test-access --secret test-secret --port "127.0.0.1:$s3_port" --quiet posix "$tmp/buckets" >"$tmp/buckets.log" 2>&1 &
buckets=$!

# An ordinary user without a cgroup cannot hold every limit, and is told so.
best_effort=$([ "$(id -u)" = 0 ] && echo false || echo true)
cat >"$tmp/config.yaml" <<END
provider: local
best_effort: $best_effort
limits:
  network_allow_list: [127.0.0.1/32] # where the buckets are
local:
  images:
    mirrors:
      docker.io: ["http://$images"]
END
# Only what is named reaches the server; a key of the machine's own cloud does not.
env -i HOME="$tmp" PATH="$PATH" "$berth" serve --config "$tmp/config.yaml" --state "$tmp/state" --daytona-api 127.0.0.1:0 </dev/null 2>"$tmp/berth.log" &
server=$!
url=$(await "$tmp/berth.log" 'http://127\.0\.0\.1:[0-9]+/api' $server) || exit 1

mkdir "$tmp/scripts"
cp "$here"/*.mjs "$tmp/scripts"
ln -s "$packages/node_modules" "$tmp/scripts/node_modules"
failed=()
# script SDK NAME: run it, and show its output only when it fails.
script() {
	local begin=$SECONDS
	if (cd "$tmp/scripts" && env -i HOME="$tmp" PATH="$PATH" SDK="$1" DAYTONA_API_KEY=any DAYTONA_API_URL="$url" \
		S3_BUCKET=bucket S3_ACCESS_KEY_ID=test-access S3_SECRET_ACCESS_KEY=test-secret S3_ENDPOINT="http://127.0.0.1:$s3_port" timeout 300 node "$2") >"$tmp/out" 2>&1; then
		echo "ok    $2 with $1, $((SECONDS - begin)) s"
	else
		echo "FAIL  $2 with $1 (exit $?)"
		tail -n 60 "$tmp/out" | sed 's/^/      /'
		tail -n 20 "$tmp/berth.log" | sed 's/^/      berth: /'
		failed+=("$2 with $1")
	fi
}
if [ $# = 0 ]; then
	set -- life.mjs process.mjs files.mjs git.mjs images.mjs mastra.mjs mounts.mjs
fi
for name in "$@"; do
	if [ "$name" = mastra.mjs ] || [ "$name" = mounts.mjs ]; then
		script @mastra/daytona "$name"
	else
		script @daytonaio/sdk "$name"
		script @daytona/sdk "$name"
	fi
done
# Every script deletes what it makes.
if left=$(curl -fsS -H 'Authorization: Bearer any' "$url/sandbox" | grep -o '"name":"[^"]*"'); then
	echo "FAIL  sandboxes are left: $left"
	failed+=("sandboxes are left")
fi

if [ ${#failed[@]} -gt 0 ]; then
	echo "${#failed[@]} failed"
	exit 1
fi
echo "all passed"
