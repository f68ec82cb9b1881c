#!/bin/sh
# nft 1.0.6 (Debian 12): what `nft -j list ruleset` prints is not the ruleset: loaded again, a sleeping table is awake, and timeouts are gone.
#
# In libnftables-json(5) what is listed is what a command adds (`LIST_OBJECT`), and `nft -j -f` takes a listing as it is. Each of these is loaded
# as text, listed as JSON, flushed, and loaded from that JSON. The first three are taken without a word:
#   a table with `flags dormant`, whose chains the kernel does not run: the flag is not in the JSON, and the chains run
#   a `ct timeout` object with a policy: the JSON has all of it, and reading forgets: it comes back with an empty policy (the kernel's own
#   timeouts) and for both families
#   a set with `auto-merge`: not in the JSON
# and these are refused, with everything else in the file:
#   a `synproxy` object: listed, but unknown to reading
#   a `ct expectation`: listed with all of it, and reading misses something
# Text goes both ways for all five. Expected: the same ruleset, or an error when it is listed. Who keeps a backup as JSON, or compares what runs with
# it, is told nothing. What helps: keep text, and use JSON for looking.
#
# Exits non-zero when it changes. Needs Debian 12's apt-get and dpkg, and unshare with the right to make a network namespace (root).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
version="1.0.6-2+deb12u2"
(cd "$folder" && apt-get download -q "nftables=$version" "libnftables1=$version" >/dev/null 2>&1)
for package in "$folder"/*.deb; do
  dpkg-deb -x "$package" "$folder/root"
done
cat > "$folder/try" <<'TRY'
set -eu
export LD_LIBRARY_PATH="$1/root/usr/lib/x86_64-linux-gnu"
nft="$1/root/usr/sbin/nft"
# Loads a table from standard input, then its listing in the named form; prints what is different afterwards.
round() {
  "$nft" flush ruleset
  "$nft" -f "$2/rules"
  "$nft" list ruleset > "$2/before"
  if [ "$1" = json ]; then json=-j; else json=; fi
  "$nft" $json list ruleset > "$2/kept"
  "$nft" flush ruleset
  if ! "$nft" $json -f "$2/kept" 2>"$2/said"; then
    echo "$1: refused: $(sed -n '1s/^.*Error: //p' "$2/said")"
    return
  fi
  "$nft" list ruleset > "$2/after"
  if cmp -s "$2/before" "$2/after"; then
    echo "$1: the same"
  else
    echo "$1: $(diff "$2/before" "$2/after" | sed -n 's/^\([<>]\)[[:space:]]*/\1 /p' | tr '\n' '|')"
  fi
}
both() {
  cat > "$1/rules"
  round text "$1"
  round json "$1"
}
"$nft" --version | cut -d' ' -f2
echo dormant; both "$1" <<'RULES'
table inet t {
  flags dormant
  chain c {
    type filter hook input priority filter; policy accept;
    tcp dport 9 drop
  }
}
RULES
echo timeout; both "$1" <<'RULES'
table inet t {
  ct timeout slow {
    protocol tcp
    l3proto ip
    policy = { established : 123, close : 12 }
  }
}
RULES
echo auto-merge; both "$1" <<'RULES'
table inet t {
  set s {
    type inet_service
    flags interval
    auto-merge
    elements = { 1-5, 9-20 }
  }
}
RULES
echo synproxy; both "$1" <<'RULES'
table inet t {
  synproxy s {
    mss 1460
    wscale 7
    timestamp sack-perm
  }
}
RULES
echo expectation; both "$1" <<'RULES'
table inet t {
  ct expectation e {
    protocol tcp
    dport 9876
    timeout 2m
    size 12
    l3proto ip
  }
}
RULES
TRY
cat > "$folder/wanted" <<'WANTED'
v1.0.6
dormant
text: the same
json: < flags dormant|< |
timeout
text: the same
json: < l3proto ip|< policy = { established : 123, close : 12 }|> l3proto inet|> policy = {  }|
auto-merge
text: the same
json: < auto-merge|
synproxy
text: the same
json: refused: Unknown object passed to add command.
expectation
text: the same
json: refused: missing options
WANTED
seen=$(unshare --net sh "$folder/try" "$folder")
echo "$seen"
[ "$seen" = "$(cat "$folder/wanted")" ] || { echo "changed; it was:"; cat "$folder/wanted"; exit 1; }
