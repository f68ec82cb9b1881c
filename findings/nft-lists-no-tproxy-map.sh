#!/bin/sh
# nft 1.0.6 (Debian 12): a `tproxy` whose port is looked up in a map is listed without its port, so what was saved means something else.
#
# nft(8) has `tproxy [ip | ip6] to [ADDRESS][:PORT]`, where both are expressions, and the kernel takes a port from a register: which of two proxies a
# connection goes to may depend on its destination port. Loading such a rule works, and so does the rule. `nft list ruleset` writes the statement
# without the map, and without its colon:
#   tproxy ip to :tcp dport map { … }             is listed as `tproxy ip to`, which nft itself refuses to read
#   tproxy ip to 127.0.0.1:tcp dport map { … }    is listed as `tproxy ip to 127.0.0.1`, which it reads, without a word, as another rule: the port
#                                                 stays that of the packet
# Expected: `nft list ruleset` can be loaded and is then the same ruleset, which the manual promises of its output. In JSON (`nft -j`) the map is
# there; an address from a map is listed in both. So a save and restore by text (Debian's nftables.service, an operator's copy) redirects elsewhere.
# What helps: one rule a port, or saving as JSON.
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
# Loads one rule, prints how it is listed, and what comes of loading the listing.
round() {
  "$nft" flush ruleset
  "$nft" -f - <<RULES
table inet t {
  chain c {
    type filter hook prerouting priority mangle; policy accept;
    $1
  }
}
RULES
  "$nft" list ruleset > "$2/listed"
  echo "listed: $(grep tproxy "$2/listed" | sed 's/^[[:space:]]*//; s/ accept$//')"
  map=absent
  "$nft" -j list ruleset | grep -q '"map"' && map=there
  echo "in JSON: map $map"
  "$nft" flush ruleset
  if "$nft" -f "$2/listed" 2>"$2/said"; then
    "$nft" -j list ruleset | grep -q '"map"' && echo "loaded: the same" || echo "loaded: without the map"
  else
    echo "refused: $(sed -n '1s/^.*Error: //p' "$2/said")"
  fi
}
"$nft" --version | cut -d' ' -f2
round 'meta l4proto tcp tproxy ip to :tcp dport map { 80 : 15001, 81 : 15002 } accept' "$1"
round 'meta l4proto tcp tproxy ip to 127.0.0.1:tcp dport map { 80 : 15001, 81 : 15002 } accept' "$1"
round 'meta l4proto tcp tproxy ip to ip saddr map { 10.0.0.1 : 127.0.0.1 }:15001 accept' "$1"
TRY
cat > "$folder/wanted" <<'WANTED'
v1.0.6
listed: meta l4proto tcp tproxy ip to
in JSON: map there
refused: syntax error, unexpected accept
listed: meta l4proto tcp tproxy ip to 127.0.0.1
in JSON: map there
loaded: without the map
listed: meta l4proto tcp tproxy ip to ip saddr map { 10.0.0.1 : 127.0.0.1 }:15001
in JSON: map there
loaded: the same
WANTED
seen=$(unshare --net sh "$folder/try" "$folder")
echo "$seen"
[ "$seen" = "$(cat "$folder/wanted")" ] || { echo "changed; it was:"; cat "$folder/wanted"; exit 1; }
