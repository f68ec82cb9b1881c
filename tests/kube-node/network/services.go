package network

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"sort"
	"strings"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// World is the Services of the cluster with their endpoints.
type World struct {
	Services []*core.Service
	Slices   map[types.NamespacedName][]*discovery.EndpointSlice
	// API is where the node relays calls to the Service `kubernetes` in `default`.
	API [2]netip.AddrPort
}

// Endpoints that callers of a Service's port are spread over: the ready ones; if there are none, those that end and still serve.
func Endpoints(slices []*discovery.EndpointSlice, family core.IPFamily, port string) []netip.AddrPort {
	var ready, ending []netip.AddrPort
	for _, slice := range slices {
		if string(slice.AddressType) != string(family) {
			continue
		}
		for _, its := range slice.Ports {
			if its.Port == nil || value(its.Name, "") != port {
				continue
			}
			for _, endpoint := range slice.Endpoints {
				address, err := netip.ParseAddr(endpoint.Addresses[0])
				if err != nil {
					continue
				}
				at := netip.AddrPortFrom(address, uint16(*its.Port))
				switch {
				case value(endpoint.Conditions.Ready, true):
					ready = append(ready, at)
				case value(endpoint.Conditions.Serving, false) && value(endpoint.Conditions.Terminating, false):
					ending = append(ending, at)
				}
			}
		}
	}
	if len(ready) == 0 {
		ready = ending
	}
	sort.Slice(ready, func(left, right int) bool { return ready[left].Compare(ready[right]) < 0 })
	return ready
}

// Rules are the nftables rules that make a world's virtual addresses lead to endpoints: new connections are spread at random, a port
// without endpoints refuses. Not done: session affinity, node ports, load balancers, external addresses, traffic policies.
func Rules(table string, world World) string {
	var vips, idle, hairpins [2][]string
	var chains strings.Builder
	seen := map[netip.Addr]bool{}
	number := 0
	for _, service := range world.Services {
		for _, text := range service.Spec.ClusterIPs {
			vip, err := netip.ParseAddr(text)
			if err != nil {
				continue
			}
			side, family, word := 0, core.IPv4Protocol, "ip"
			if vip.Is6() {
				side, family, word = 1, core.IPv6Protocol, "ip6"
			}
			for _, port := range service.Spec.Ports {
				key := fmt.Sprintf("%s . %s . %d", vip, strings.ToLower(string(port.Protocol)), port.Port)
				endpoints := Endpoints(world.Slices[types.NamespacedName{Namespace: service.Namespace, Name: service.Name}], family, port.Name)
				if service.Namespace == "default" && service.Name == "kubernetes" && world.API[side].IsValid() {
					endpoints = []netip.AddrPort{world.API[side]}
				}
				if len(endpoints) == 0 {
					idle[side] = append(idle[side], key)
					continue
				}
				number++
				vips[side] = append(vips[side], fmt.Sprintf("%s : goto service-%d", key, number))
				var picks []string
				for at, endpoint := range endpoints {
					picks = append(picks, fmt.Sprintf("%d : goto endpoint-%d-%d", at, number, at))
					fmt.Fprintf(&chains, "\tchain endpoint-%d-%d { meta l4proto %s dnat %s to %s; }\n", number, at,
						strings.ToLower(string(port.Protocol)), word, endpoint)
					if !seen[endpoint.Addr()] {
						seen[endpoint.Addr()] = true
						hairpins[side] = append(hairpins[side], fmt.Sprintf("%s . %s", endpoint.Addr(), endpoint.Addr()))
					}
				}
				fmt.Fprintf(&chains, "\tchain service-%d { numgen random mod %d vmap { %s }; }\n", number, len(picks), strings.Join(picks, ", "))
			}
		}
	}
	var text strings.Builder
	fmt.Fprintf(&text, "table inet %s\ndelete table inet %s\ntable inet %s {\n", table, table, table)
	for side, kind := range []string{"ipv4_addr", "ipv6_addr"} {
		fmt.Fprintf(&text, "\tmap vips%d { type %s . inet_proto . inet_service : verdict; %s }\n", side, kind, elements(vips[side]))
		fmt.Fprintf(&text, "\tset idle%d { type %s . inet_proto . inet_service; %s }\n", side, kind, elements(idle[side]))
		fmt.Fprintf(&text, "\tset hairpins%d { type %s . %s; %s }\n", side, kind, kind, elements(hairpins[side]))
	}
	text.WriteString(chains.String())
	pick := "ip daddr . meta l4proto . th dport vmap @vips0; ip6 daddr . meta l4proto . th dport vmap @vips1;"
	refuse := "ip daddr . meta l4proto . th dport @idle0 reject; ip6 daddr . meta l4proto . th dport @idle1 reject;"
	fmt.Fprintf(&text, "\tchain prerouting { type nat hook prerouting priority dstnat; %s }\n", pick)
	fmt.Fprintf(&text, "\tchain output { type nat hook output priority -100; %s }\n", pick)
	fmt.Fprintf(&text, "\tchain refuse-forwarded { type filter hook forward priority filter; %s }\n", refuse)
	fmt.Fprintf(&text, "\tchain refuse-own { type filter hook output priority filter; %s }\n", refuse)
	// A pod that reaches itself by its Service must see another's address, or it would answer itself directly.
	text.WriteString("\tchain postrouting { type nat hook postrouting priority srcnat; ip saddr . ip daddr @hairpins0 masquerade; " +
		"ip6 saddr . ip6 daddr @hairpins1 masquerade; }\n}\n")
	return text.String()
}

// Apply makes the rules for this world live, all at once.
func (fabric *Fabric) Apply(world World) error { return nft(Rules(fabric.name, world)) }

// Relay passes connections to the gateway on to the API server, wherever it listens; it returns where pods are sent.
func (fabric *Fabric) Relay(api string) ([2]netip.AddrPort, error) {
	var at [2]netip.AddrPort
	for side, gateway := range fabric.Gateways {
		listener, err := net.Listen("tcp", netip.AddrPortFrom(gateway, 0).String())
		if err != nil {
			return at, fmt.Errorf("cannot listen for calls to the API server: %w", err)
		}
		at[side] = netip.MustParseAddrPort(listener.Addr().String())
		go func() {
			for {
				client, err := listener.Accept()
				if err != nil {
					return
				}
				go relay(client, api)
			}
		}()
	}
	return at, nil
}

func elements(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return "elements = { " + strings.Join(all, ", ") + " }"
}

func nft(rules string) error {
	command := exec.Command("nft", "-f", "-")
	command.Stdin = strings.NewReader(rules)
	if text, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("nft refuses the node's rules: %w: %s", err, text)
	}
	return nil
}

func value[T any](pointer *T, otherwise T) T {
	if pointer == nil {
		return otherwise
	}
	return *pointer
}
