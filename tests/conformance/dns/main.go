// Command dns plays the part of CoreDNS that the suite's base asks for: of a Corefile it answers the zones that have `whoami`, over UDP, as
// CoreDNS does, and refuses all others. What that file forwards to the internet it cannot reach.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/miekg/dns"
)

// whoami finds the zones of a Corefile that tell clients who they are, each with its port.
func whoami(corefile string) map[string]string {
	zones := map[string]string{}
	var zone, port string
	for line := range strings.Lines(corefile) {
		words := strings.Fields(line)
		switch {
		case len(words) == 2 && words[1] == "{":
			zone, port, _ = strings.Cut(words[0], ":")
		case len(words) == 1 && words[0] == "whoami":
			zones[dns.Fqdn(zone)] = port
		}
	}
	return zones
}

// answer tells a client its address and port, in the additional section.
func answer(writer dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg).SetReply(query)
	reply.Authoritative = true
	address, port, _ := net.SplitHostPort(writer.RemoteAddr().String())
	number, _ := strconv.ParseUint(port, 10, 16)
	name := query.Question[0].Name
	head := func(name string, kind uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET}
	}
	if client := net.ParseIP(address); client.To4() != nil {
		reply.Extra = append(reply.Extra, &dns.A{Hdr: head(name, dns.TypeA), A: client.To4()})
	} else {
		reply.Extra = append(reply.Extra, &dns.AAAA{Hdr: head(name, dns.TypeAAAA), AAAA: client})
	}
	reply.Extra = append(reply.Extra, &dns.SRV{Hdr: head("_udp."+name, dns.TypeSRV), Port: uint16(number), Target: "."})
	if err := writer.WriteMsg(reply); err != nil {
		fmt.Fprintf(os.Stderr, "no answer to %s: %v\n", writer.RemoteAddr(), err)
	}
}

// serve answers until the context ends.
func serve(ctx context.Context, zones map[string]string) error {
	// A name of no zone is refused by the multiplexer.
	ports := map[string]*dns.ServeMux{}
	for zone, port := range zones {
		if ports[port] == nil {
			ports[port] = dns.NewServeMux()
		}
		ports[port].HandleFunc(zone, answer)
	}
	ended := make(chan error, len(ports))
	for port, zones := range ports {
		server := &dns.Server{Addr: ":" + port, Net: "udp", Handler: zones}
		context.AfterFunc(ctx, func() { _ = server.Shutdown() })
		go func() { ended <- server.ListenAndServe() }()
	}
	for range ports {
		if err := <-ended; err != nil {
			return err
		}
	}
	return nil
}

func main() {
	path := flag.String("conf", "Corefile", "the Corefile")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	text, err := os.ReadFile(*path)
	zones := whoami(string(text))
	if err == nil && len(zones) == 0 {
		err = errors.New("no zone has `whoami`")
	}
	if err == nil {
		err = serve(ctx, zones)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", *path, err)
		os.Exit(1)
	}
}
