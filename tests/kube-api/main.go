// kube-api is a real Kubernetes API for tests, in one process: the published libraries that Kubernetes' own servers are made of, over an
// embedded etcd. README.md says what it is and what it is not.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/klog/v2"
)

// Longer than any start on a loaded machine, shorter than a test's patience.
const startSecondsMax = 180

type settings struct {
	dir     string
	address string
	port    int
	rbac    bool
	keep    bool
	version string
}

func main() {
	var settings settings
	flags := flag.NewFlagSet("kube-api", flag.ExitOnError)
	flags.StringVar(&settings.dir, "dir", "", "folder for kubeconfig, ca.crt, admin.token and the store; made if absent")
	flags.StringVar(&settings.address, "address", "127.0.0.1", "IP address to listen on, which is also the one in kubeconfig")
	flags.IntVar(&settings.port, "port", 0, "port to listen on; 0 takes a free one")
	flags.BoolVar(&settings.rbac, "rbac", false, "enforce Roles and ClusterRoles; otherwise whoever is authenticated may do everything")
	flags.BoolVar(&settings.keep, "keep", false, "run on when standard input ends; otherwise the end of it ends this process")
	flags.StringVar(&settings.version, "emulate", "", "serve as this minor version, such as 1.34 (feature gates follow it)")
	logs := flag.NewFlagSet("logs", flag.ExitOnError)
	klog.InitFlags(logs)
	flags.Var(logs.Lookup("v").Value, "v", "verbosity of the log on standard error")
	_ = flags.Parse(os.Args[1:])
	if settings.dir == "" || net.ParseIP(settings.address) == nil || flags.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: kube-api --dir DIR [--address IP] [--port PORT] [--rbac] [--emulate VERSION] [--keep]")
		os.Exit(2)
	}
	if err := run(settings); err != nil {
		fmt.Fprintln(os.Stderr, "kube-api:", err)
		os.Exit(1)
	}
}

// Serves until a signal or the end of standard input. One JSON line on standard output says that it is ready.
func run(settings settings) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if !settings.keep {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			stop()
		}()
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(settings.address, fmt.Sprint(settings.port)))
	if err != nil {
		return fmt.Errorf("cannot listen, choose another --address or --port: %w", err)
	}
	if err := os.MkdirAll(settings.dir, 0o700); err != nil {
		return err
	}
	papers, err := issuePapers(settings.dir, settings.address, listener.Addr().String())
	if err != nil {
		return err
	}
	store, err := startStore(filepath.Join(settings.dir, "etcd"))
	if err != nil {
		return err
	}
	defer store.Close()
	server, err := newServer(settings, listener, papers, store.endpoint)
	if err != nil {
		return err
	}

	ended := make(chan error, 1)
	go func() { ended <- server.run(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-time.After(startSecondsMax * time.Second):
		return errors.New("not ready in time; run again with -v 4 to see what it waits for")
	case <-server.ready:
	}
	line, err := json.Marshal(map[string]string{
		"event": "ready", "server": papers.server, "kubeconfig": papers.kubeconfig, "ca": papers.caFile, "token": papers.tokenFile,
	})
	if err != nil {
		return err
	}
	fmt.Println(string(line))
	return <-ended
}
