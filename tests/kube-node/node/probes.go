package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"dev.meshwright/tests/kube-node/order"
	"dev.meshwright/tests/kube-node/probe"
)

// probe runs one probe over one run of a container, from the node's side.
func (it *container) probe(begun *run, kind probe.Kind, spec *core.Probe) {
	if kind != probe.Startup {
		select {
		case <-begun.up:
		case <-begun.over:
			return
		}
	}
	machine := probe.New(kind, spec)
	timer := time.NewTimer(probe.Wait(spec, time.Since(begun.began)))
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-begun.over:
			return
		}
		timer.Reset(probe.Period(spec))
		it.worker.lock.Lock()
		idle := it.stopping && kind != probe.Readiness
		it.worker.lock.Unlock()
		if idle {
			return
		}
		err := it.attempt(begun, &spec.ProbeHandler, probe.Timeout(spec))
		if err != nil {
			it.worker.log("probe failed", "container", it.spec.Name, "kind", kind, "reason", err.Error())
		}
		if machine.Observe(err == nil) && it.act(begun, kind, machine.Passes()) {
			return
		}
	}
}

// act on a verdict; true if the probe's work is done with it.
func (it *container) act(begun *run, kind probe.Kind, passes bool) bool {
	worker := it.worker
	defer worker.kick()
	worker.lock.Lock()
	defer worker.lock.Unlock()
	if it.run != begun || it.state == order.Exited {
		return true
	}
	switch {
	case kind == probe.Readiness:
		it.ready = passes
		return false
	case !passes:
		it.doomed = true
		return true
	case kind == probe.Startup:
		it.started = true
		close(begun.up)
		return true
	}
	return false
}

// attempt asks once.
func (it *container) attempt(begun *run, handler *core.ProbeHandler, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	switch {
	case handler.Exec != nil:
		return it.execute(ctx, begun, handler.Exec.Command)
	case handler.HTTPGet != nil:
		return it.get(ctx, handler.HTTPGet, "kube-probe/1.36")
	case handler.TCPSocket != nil:
		address, err := it.address(handler.TCPSocket.Host, handler.TCPSocket.Port)
		if err != nil {
			return err
		}
		connection, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return connection.Close()
	case handler.GRPC != nil:
		return it.health(ctx, handler.GRPC)
	}
	return fmt.Errorf("this kind of probe is not emulated")
}

func (it *container) execute(ctx context.Context, begun *run, command []string) error {
	var said bytes.Buffer
	code, err := begun.process.Join(begun.spec, command, nil, &said, &said, ctx.Done())
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("command timed out")
	case code != 0:
		return fmt.Errorf("exit code %d: %s", code, strings.TrimSpace(said.String()[:min(said.Len(), 200)]))
	}
	return nil
}

// get asks by HTTP: any status from 200 to below 400 passes; certificates are not verified; redirects are followed on the same host only.
func (it *container) get(ctx context.Context, action *core.HTTPGetAction, agent string) error {
	address, err := it.address(action.Host, action.Port)
	if err != nil {
		return err
	}
	scheme := strings.ToLower(string(action.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	target, err := url.Parse(action.Path)
	if err != nil {
		return fmt.Errorf("the path %q: %w", action.Path, err)
	}
	target.Scheme, target.Host = scheme, address
	if !strings.HasPrefix(target.Path, "/") {
		target.Path = "/" + target.Path
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return err
	}
	request.Header.Set("User-Agent", agent)
	request.Header.Set("Accept", "*/*")
	for _, header := range action.HTTPHeaders {
		if strings.EqualFold(header.Name, "Host") {
			request.Host = header.Value
			continue
		}
		request.Header.Add(header.Name, header.Value)
	}
	client := http.Client{
		Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			if next.URL.Hostname() != via[0].URL.Hostname() || len(via) >= 10 {
				return http.ErrUseLastResponse
			}
			return nil
		},
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode < 200 || response.StatusCode >= 400 {
		return fmt.Errorf("HTTP probe failed with statuscode: %d", response.StatusCode)
	}
	return nil
}

func (it *container) health(ctx context.Context, action *core.GRPCAction) error {
	address, err := it.address("", intstr.FromInt32(action.Port))
	if err != nil {
		return err
	}
	connection, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUserAgent("kube-probe/1.36"))
	if err != nil {
		return err
	}
	defer connection.Close()
	request := &grpc_health_v1.HealthCheckRequest{Service: valueOr(action.Service, "")}
	answer, err := grpc_health_v1.NewHealthClient(connection).Check(ctx, request)
	if err != nil {
		return err
	}
	if answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("service unhealthy (responded with %q)", answer.Status)
	}
	return nil
}

// address of a port of the container, by number or by name, on the pod's address unless a host is given.
func (it *container) address(host string, port intstr.IntOrString) (string, error) {
	if host == "" {
		host = it.worker.facts.podIPs[0]
	}
	number := int(port.IntVal)
	if port.Type == intstr.String {
		number, _ = strconv.Atoi(port.StrVal)
		for _, its := range it.spec.Ports {
			if its.Name == port.StrVal {
				number = int(its.ContainerPort)
			}
		}
	}
	if number < 1 || number > 65535 {
		return "", fmt.Errorf("the container has no port %s", port.String())
	}
	return net.JoinHostPort(host, strconv.Itoa(number)), nil
}

// hook runs a lifecycle hook until it ends or its time is over.
func (it *container) hook(begun *run, hook *core.LifecycleHandler, timeout time.Duration, name string) (string, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var err error
	switch {
	case hook.Exec != nil:
		err = it.execute(ctx, begun, hook.Exec.Command)
	case hook.HTTPGet != nil:
		err = it.get(ctx, hook.HTTPGet, "kube-lifecycle/1.36")
	case hook.Sleep != nil:
		select {
		case <-time.After(time.Duration(hook.Sleep.Seconds) * time.Second):
		case <-begun.over:
		case <-ctx.Done():
		}
	default:
		err = fmt.Errorf("this kind of %s hook is not emulated", name)
	}
	if err != nil {
		return err.Error(), false
	}
	return "", true
}
