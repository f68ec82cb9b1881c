package main

import (
	"maps"
	"net"
	"testing"

	"github.com/miekg/dns"
)

// Aim: only zones that say so are answered, each at its port.
func TestZones(t *testing.T) {
	zones := whoami(".:53 {\n    forward . 192.0.2.1\n    log\n}\nfoo.bar.com:53 {\n  whoami\n}\n")
	if want := map[string]string{"foo.bar.com.": "53"}; !maps.Equal(zones, want) {
		t.Errorf("%v, want %v", zones, want)
	}
}

// Aim: a question of such a zone is answered with who asks, one of another is refused.
func TestAnswers(t *testing.T) {
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	zones := dns.NewServeMux()
	zones.HandleFunc("foo.bar.com.", answer)
	server := &dns.Server{PacketConn: socket, Handler: zones}
	go func() { _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown() })
	ask := func(name string) *dns.Msg {
		reply, err := dns.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), socket.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	told := ask("foo.bar.com.")
	if told.Rcode != dns.RcodeSuccess || len(told.Extra) != 2 || told.Extra[0].(*dns.A).A.String() != "127.0.0.1" {
		t.Errorf("%v", told)
	}
	if refused := ask("example.org."); refused.Rcode != dns.RcodeRefused {
		t.Errorf("%v", refused)
	}
}
