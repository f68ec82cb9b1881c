// An access log service of Envoy's own published types: writes each message of each stream as a line of JSON to standard output.
package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
)

type service struct {
	accesslog.UnimplementedAccessLogServiceServer
}

func (service) StreamAccessLogs(stream accesslog.AccessLogService_StreamAccessLogsServer) error {
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&accesslog.StreamAccessLogsResponse{})
		}
		if err != nil {
			return err
		}
		// Its rules hold too: an identifier that is there is whole, and no message is empty.
		if err := message.ValidateAll(); err != nil {
			fmt.Printf("{\"invalid\": %q}\n", err.Error())
			continue
		}
		fmt.Println(protojson.MarshalOptions{UseProtoNames: true}.Format(message))
	}
}

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	accesslog.RegisterAccessLogServiceServer(server, service{})
	log.Fatal(server.Serve(listener))
}
