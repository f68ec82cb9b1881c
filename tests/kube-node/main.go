// kube-node is a node and the few controllers of a Kubernetes cluster for tests on one machine, beside the API server of tests/kube-api. See
// README.md for what it plays and what it does not.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"dev.meshwright/tests/kube-node/controllers"
	"dev.meshwright/tests/kube-node/node"
)

// Requests per second to the API server: no test is to wait for its own client.
const queriesPerSec, queriesBurst = 2_000, 4_000

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kube-node:", err)
		os.Exit(1)
	}
}

func run() error {
	kubeconfig := flag.String("kubeconfig", os.Getenv("KUBECONFIG"), "how to reach the API server")
	withControllers := flag.Bool("controllers", false, "run the controllers and the scheduler")
	name := flag.String("node", "", "play the node of this name")
	zone := flag.String("zone", "here-1", "the node's zone")
	number := flag.Uint("number", 0, "the node's number, 0 to 255: its pods are 10.244.NUMBER.0/24 and fd00:10:244:NUMBER::/64")
	images := flag.String("images", "", "table of images: JSON, image name to program (needed by --node)")
	state := flag.String("state", "", "folder for volumes and output (default: a new one, removed at the end)")
	services := flag.String("service-cidr", "10.96.0.0/12,fd00:10:96::/112", "ranges of Services' virtual addresses")
	backoff := flag.Duration("backoff", 10*time.Second, "wait before the second restart of a container")
	refresh := flag.Duration("refresh", 10*time.Second, "how often volumes from ConfigMaps, Secrets and tokens are brought up to date")
	flag.Parse()
	if flag.NArg() > 0 || !*withControllers && *name == "" {
		return fmt.Errorf("usage: kube-node --kubeconfig FILE [--controllers] [--node NAME --images FILE]; see --help")
	}
	if *name != "" && *images == "" {
		return fmt.Errorf("a node needs --images FILE, the table of what image names stand for")
	}
	if *number > 255 {
		return fmt.Errorf("--number %d: a node's number is 0 to 255", *number)
	}
	config, client, err := connect(*kubeconfig)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(os.Stdout, nil))
	// The client library says much about what is done again anyway.
	klog.SetSlogLogger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})))
	ctx, cancel := lifetime()
	defer cancel()
	parts := map[string]func() error{}
	if *withControllers {
		parts["controllers"] = func() error { return controllers.Run(ctx, client, log) }
	}
	if *name != "" {
		options := node.Options{Name: *name, Zone: *zone, Server: config.Host, State: *state, Images: *images, Backoff: *backoff, Refresh: *refresh}
		if options.State == "" {
			if options.State, err = os.MkdirTemp("", "kube-node-"); err != nil {
				return fmt.Errorf("cannot make a folder for volumes: %w", err)
			}
			defer os.RemoveAll(options.State)
		} else if options.State, err = filepath.Abs(options.State); err != nil {
			return err
		}
		options.Pods = [2]netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", *number)), netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", *number)),
		}
		for _, text := range strings.Split(*services, ",") {
			prefix, err := netip.ParsePrefix(text)
			if err != nil {
				return fmt.Errorf("--service-cidr: %w", err)
			}
			options.Services = append(options.Services, prefix)
		}
		parts["node"] = func() error { return node.Run(ctx, client, options, log) }
	}
	return together(parts, cancel)
}

// together runs the parts until all have ended; the first that fails ends the others.
func together(parts map[string]func() error, cancel func()) error {
	var group sync.WaitGroup
	failures := make(chan error, len(parts))
	for name, part := range parts {
		group.Add(1)
		go func() {
			defer group.Done()
			defer cancel()
			if err := part(); err != nil {
				failures <- fmt.Errorf("%s: %w", name, err)
			}
		}()
	}
	group.Wait()
	close(failures)
	return <-failures
}

func connect(path string) (*rest.Config, kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot use the kubeconfig %q: %w", path, err)
	}
	config.QPS, config.Burst = queriesPerSec, queriesBurst
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, nil, fmt.Errorf("the kubeconfig %q: %w", path, err)
	}
	return config, client, nil
}

// lifetime ends with SIGTERM, SIGINT, or the end of standard input: whoever started the program is gone then.
func lifetime() (context.Context, context.CancelFunc) {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return ctx, cancel
}
