package network

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func number[T any](value T) *T { return &value }

func endpoint(address, conditions, host string) discovery.Endpoint {
	has := func(letter string) *bool { return number(strings.Contains(conditions, letter)) }
	it := discovery.Endpoint{Addresses: []string{address}}
	it.Conditions = discovery.EndpointConditions{Ready: has("r"), Serving: has("s"), Terminating: has("t")}
	if host != "" {
		it.Hostname = &host
	}
	return it
}

func slice(endpoints ...discovery.Endpoint) []*discovery.EndpointSlice {
	return []*discovery.EndpointSlice{{
		AddressType: discovery.AddressTypeIPv4, Endpoints: endpoints,
		Ports: []discovery.EndpointPort{{Name: number("http"), Port: number(int32(8080)), Protocol: number(core.ProtocolTCP)}},
	}}
}

func service(name, vip string) *core.Service {
	return &core.Service{
		ObjectMeta: meta.ObjectMeta{Namespace: "shop", Name: name},
		Spec: core.ServiceSpec{
			ClusterIP: vip, ClusterIPs: []string{vip},
			Ports: []core.ServicePort{{Name: "http", Port: 80, Protocol: core.ProtocolTCP}},
		},
	}
}

// Aim: callers reach ready endpoints, and those that end while they serve only when there are no others.
func TestEndpoints(t *testing.T) {
	cases := []struct {
		name  string
		slice []*discovery.EndpointSlice
		want  string
	}{
		{"ready ones", slice(endpoint("10.0.0.2", "rs", ""), endpoint("10.0.0.1", "rs", ""), endpoint("10.0.0.3", "st", "")), "10.0.0.1:8080 10.0.0.2:8080"},
		{"ending ones if there are no others", slice(endpoint("10.0.0.3", "st", ""), endpoint("10.0.0.4", "", "")), "10.0.0.3:8080"},
		{"none", slice(endpoint("10.0.0.4", "t", "")), ""},
	}
	for _, it := range cases {
		var got []string
		for _, at := range Endpoints(it.slice, core.IPv4Protocol, "http") {
			got = append(got, at.String())
		}
		if strings.Join(got, " ") != it.want {
			t.Errorf("%s: %v, want %s", it.name, got, it.want)
		}
	}
}

// Aim: the kernel takes the rules of an empty world and of one with busy, idle and IPv6 Services, twice.
func TestRules(t *testing.T) {
	six := service("six", "fd00:10:96::7")
	world := World{
		Services: []*core.Service{service("web", "10.96.0.7"), service("idle", "10.96.0.8"), service("headless", "None"), six},
		Slices: map[types.NamespacedName][]*discovery.EndpointSlice{
			{Namespace: "shop", Name: "web"}: slice(endpoint("10.244.0.2", "rs", ""), endpoint("10.244.0.3", "rs", "")),
			{Namespace: "shop", Name: "six"}: {{
				AddressType: discovery.AddressTypeIPv6, Endpoints: []discovery.Endpoint{endpoint("fd00:10:244::2", "rs", "")},
				Ports: []discovery.EndpointPort{{Name: number("http"), Port: number(int32(8080))}},
			}},
		},
	}
	for _, world := range []World{{}, world} {
		check := exec.Command("unshare", "--net", "nft", "-f", "-")
		text := Rules("test", world)
		check.Stdin = strings.NewReader(text + text)
		if said, err := check.CombinedOutput(); err != nil {
			t.Errorf("%v: %s\n%s", err, said, text)
		}
	}
	text := Rules("test", world)
	for _, want := range []string{"10.96.0.7 . tcp . 80 : goto service-1", "idle0 { type ipv4_addr . inet_proto . inet_service; elements = { 10.96.0.8 . tcp . 80 }",
		"dnat ip to 10.244.0.3:8080", "dnat ip6 to [fd00:10:244::2]:8080"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// Aim: names are Kubernetes' own: Services, headless ones, host names, external names, ports; a name that is not there does not exist.
func TestNames(t *testing.T) {
	external := service("away", "")
	external.Spec = core.ServiceSpec{Type: core.ServiceTypeExternalName, ExternalName: "example.org"}
	all := map[string]*core.Service{"web": service("web", "10.96.0.7"), "db": service("db", "None"), "away": external}
	names := Names{
		Service: func(namespace, name string) *core.Service {
			if namespace != "shop" {
				return nil
			}
			return all[name]
		},
		Slices: func(string, string) []*discovery.EndpointSlice {
			return slice(endpoint("10.244.0.2", "rs", "db-0"), endpoint("10.244.0.3", "rs", "db-1"), endpoint("10.244.0.4", "", "db-2"))
		},
	}
	cases := []struct {
		name string
		kind dnsmessage.Type
		want string
	}{
		{"web.shop.svc.cluster.local.", dnsmessage.TypeA, "10.96.0.7"},
		{"WEB.shop.svc.cluster.local.", dnsmessage.TypeA, "10.96.0.7"},
		{"web.shop.svc.cluster.local.", dnsmessage.TypeAAAA, ""},
		{"db.shop.svc.cluster.local.", dnsmessage.TypeA, "10.244.0.2 10.244.0.3"},
		{"db-1.db.shop.svc.cluster.local.", dnsmessage.TypeA, "10.244.0.3"},
		{"db-9.db.shop.svc.cluster.local.", dnsmessage.TypeA, "no such name"},
		{"away.shop.svc.cluster.local.", dnsmessage.TypeA, "example.org."},
		{"_http._tcp.web.shop.svc.cluster.local.", dnsmessage.TypeSRV, "80 web.shop.svc.cluster.local."},
		{"_http._udp.web.shop.svc.cluster.local.", dnsmessage.TypeSRV, "no such name"},
		{"web.svc.cluster.local.", dnsmessage.TypeA, "no such name"},
		{"example.org.", dnsmessage.TypeA, "no such name"},
	}
	for _, it := range cases {
		query := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(it.name), Type: it.kind, Class: dnsmessage.ClassINET}}}
		packed, _ := query.Pack()
		var reply dnsmessage.Message
		if err := reply.Unpack(names.Reply(packed, datagramMax)); err != nil {
			t.Fatal(err)
		}
		got := words(&reply)
		if got != it.want {
			t.Errorf("%s %s: %s, want %s", it.name, it.kind, got, it.want)
		}
	}
	if names.Reply([]byte("nonsense"), datagramMax) != nil {
		t.Error("nonsense is answered")
	}
}

func words(reply *dnsmessage.Message) string {
	if reply.RCode == dnsmessage.RCodeNameError {
		return "no such name"
	}
	var all []string
	for _, record := range reply.Answers {
		switch body := record.Body.(type) {
		case *dnsmessage.AResource:
			all = append(all, netip.AddrFrom4(body.A).String())
		case *dnsmessage.CNAMEResource:
			all = append(all, body.CNAME.String())
		case *dnsmessage.SRVResource:
			all = append(all, strings.Join([]string{"80", body.Target.String()}, " "))
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}
