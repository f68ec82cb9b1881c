package network

import (
	"io"
	"net"
	"time"
)

// relay carries one connection in both directions until both are at their end.
func relay(client net.Conn, to string) {
	defer client.Close()
	server, err := net.DialTimeout("tcp", to, 5*time.Second)
	if err != nil {
		return
	}
	defer server.Close()
	done := make(chan struct{}, 2)
	pass := func(into, from net.Conn) {
		_, _ = io.Copy(into, from)
		_ = into.(*net.TCPConn).CloseWrite()
		done <- struct{}{}
	}
	go pass(server, client)
	go pass(client, server)
	<-done
	<-done
}
