package network

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
)

const (
	domain       = "svc.cluster.local."
	ttlSecs      = 5
	datagramMax  = 1232
	tcpIdleSecs  = 10
	messageBytes = 4096
)

// Names answers for the cluster's domain: Services, headless ones and their endpoints' host names, ExternalName, SRV of named ports. It
// knows nothing outside it: other names do not exist.
type Names struct {
	Service func(namespace, name string) *core.Service
	Slices  func(namespace, name string) []*discovery.EndpointSlice
}

// Answer to one question. The second result is false if the name does not exist; it may exist and have no record of that type.
func (names *Names) Answer(question dnsmessage.Question) ([]dnsmessage.Resource, bool) {
	name := strings.ToLower(question.Name.String())
	local, is := strings.CutSuffix(name, "."+domain)
	if !is {
		return nil, false
	}
	words := strings.Split(local, ".")
	if len(words) < 2 || len(words) > 4 {
		return nil, false
	}
	prefix, words := words[:len(words)-2], words[len(words)-2:]
	service := names.Service(words[1], words[0])
	if service == nil {
		return nil, false
	}
	head := dnsmessage.ResourceHeader{Name: question.Name, Type: question.Type, Class: dnsmessage.ClassINET, TTL: ttlSecs}
	if service.Spec.Type == core.ServiceTypeExternalName {
		target, err := dnsmessage.NewName(strings.TrimSuffix(service.Spec.ExternalName, ".") + ".")
		if err != nil || len(prefix) > 0 {
			return nil, false
		}
		head.Type = dnsmessage.TypeCNAME
		return []dnsmessage.Resource{{Header: head, Body: &dnsmessage.CNAMEResource{CNAME: target}}}, true
	}
	if len(prefix) == 2 {
		return names.ports(head, service, prefix[0], prefix[1])
	}
	var records []dnsmessage.Resource
	exists := len(prefix) == 0
	for _, address := range names.addresses(service, prefix) {
		exists = true
		switch {
		case address.Is4() && question.Type == dnsmessage.TypeA:
			records = append(records, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: address.As4()}})
		case address.Is6() && question.Type == dnsmessage.TypeAAAA:
			records = append(records, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: address.As16()}})
		}
	}
	return records, exists
}

// addresses of a Service: its virtual ones, or those of its ready endpoints if it is headless; with a host name only that endpoint's.
func (names *Names) addresses(service *core.Service, host []string) []netip.Addr {
	var all []netip.Addr
	if service.Spec.ClusterIP != core.ClusterIPNone && len(host) == 0 {
		for _, text := range service.Spec.ClusterIPs {
			if address, err := netip.ParseAddr(text); err == nil {
				all = append(all, address)
			}
		}
		return all
	}
	for _, slice := range names.Slices(service.Namespace, service.Name) {
		for _, endpoint := range slice.Endpoints {
			if !value(endpoint.Conditions.Ready, true) || len(host) == 1 && value(endpoint.Hostname, "") != host[0] {
				continue
			}
			for _, text := range endpoint.Addresses {
				if address, err := netip.ParseAddr(text); err == nil {
					all = append(all, address)
				}
			}
		}
	}
	return all
}

// ports answers `_port._protocol.service`.
func (names *Names) ports(head dnsmessage.ResourceHeader, service *core.Service, port, protocol string) ([]dnsmessage.Resource, bool) {
	for _, its := range service.Spec.Ports {
		if "_"+its.Name != port || "_"+strings.ToLower(string(its.Protocol)) != protocol {
			continue
		}
		if head.Type != dnsmessage.TypeSRV {
			return nil, true
		}
		target := dnsmessage.MustNewName(fmt.Sprintf("%s.%s.%s", service.Name, service.Namespace, domain))
		return []dnsmessage.Resource{{Header: head, Body: &dnsmessage.SRVResource{Weight: 100, Port: uint16(its.Port), Target: target}}}, true
	}
	return nil, false
}

// Reply to a whole message; nothing to what is no question.
func (names *Names) Reply(query []byte, sizeMax int) []byte {
	var parser dnsmessage.Parser
	head, err := parser.Start(query)
	if err != nil || head.Response {
		return nil
	}
	question, err := parser.Question()
	if err != nil {
		return nil
	}
	records, exists := names.Answer(question)
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: head.ID, Response: true, Authoritative: true, RecursionDesired: head.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{question}, Answers: records,
	}
	if !exists {
		reply.RCode = dnsmessage.RCodeNameError
	}
	packed, err := reply.Pack()
	if err == nil && len(packed) > sizeMax {
		reply.Truncated, reply.Answers = true, nil
		packed, err = reply.Pack()
	}
	if err != nil {
		return nil
	}
	return packed
}

// Serve answers on port 53 of the gateway's addresses, over UDP and TCP, until the process ends.
func (names *Names) Serve(gateways [2]netip.Addr) error {
	for _, gateway := range gateways {
		at := netip.AddrPortFrom(gateway, 53).String()
		datagrams, err := net.ListenPacket("udp", at)
		if err != nil {
			return fmt.Errorf("cannot listen for names: %w", err)
		}
		streams, err := net.Listen("tcp", at)
		if err != nil {
			return fmt.Errorf("cannot listen for names: %w", err)
		}
		go func() {
			query := make([]byte, messageBytes)
			for {
				count, from, err := datagrams.ReadFrom(query)
				if err != nil {
					return
				}
				if reply := names.Reply(query[:count], datagramMax); reply != nil {
					_, _ = datagrams.WriteTo(reply, from)
				}
			}
		}()
		go func() {
			for {
				stream, err := streams.Accept()
				if err != nil {
					return
				}
				go names.stream(stream)
			}
		}()
	}
	return nil
}

func (names *Names) stream(stream net.Conn) {
	defer stream.Close()
	for {
		_ = stream.SetDeadline(time.Now().Add(tcpIdleSecs * time.Second))
		var length [2]byte
		if _, err := io.ReadFull(stream, length[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(stream, query); err != nil {
			return
		}
		reply := names.Reply(query, 1<<16-1)
		if reply == nil {
			return
		}
		if _, err := stream.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}
