package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/utils/exec"

	"dev.meshwright/tests/kube-node/order"
)

// How long a stream may be silent, and may take to be made; the kubelet's own.
const idle, creation = 4 * time.Hour, 30 * time.Second

// serve is the kubelet's own HTTP interface, as far as the API server needs it for `pods/log`, `pods/exec` and
// `pods/portforward`. Plain HTTP: it is for the API server beside it.
func (node *Node) serve() (int, error) {
	var listeners []net.Listener
	port := "0"
	for _, address := range node.addresses() {
		listener, err := net.Listen("tcp", net.JoinHostPort(address, port))
		if err != nil {
			return 0, fmt.Errorf("cannot listen for the API server: %w", err)
		}
		_, port, _ = net.SplitHostPort(listener.Addr().String())
		listeners = append(listeners, listener)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", node.containerLogs)
	for _, method := range []string{"GET", "POST"} {
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}", node.portForward)
		mux.HandleFunc(method+" /exec/{namespace}/{pod}/{container}", node.exec)
		mux.HandleFunc(method+" /exec/{namespace}/{pod}/{uid}/{container}", node.exec)
	}
	for _, listener := range listeners {
		go func() { _ = http.Serve(listener, mux) }()
	}
	return strconv.Atoi(port)
}

// target of a request: a container of a pod of this node.
func (node *Node) target(writer http.ResponseWriter, request *http.Request) (*container, bool) {
	namespace, name := request.PathValue("namespace"), request.PathValue("pod")
	worker := node.worker(namespace, name)
	if worker == nil {
		http.Error(writer, fmt.Sprintf("pod %q not found in namespace %q on this node", name, namespace), http.StatusNotFound)
		return nil, false
	}
	it := worker.find(request.PathValue("container"))
	if it == nil {
		http.Error(writer, fmt.Sprintf("container %q not found in pod %q", request.PathValue("container"), name), http.StatusNotFound)
		return nil, false
	}
	return it, true
}

func (node *Node) containerLogs(writer http.ResponseWriter, request *http.Request) {
	it, found := node.target(writer, request)
	if !found {
		return
	}
	query := request.URL.Query()
	truth := func(name string) bool { value, _ := strconv.ParseBool(query.Get(name)); return value }
	asked := reading{follow: truth("follow"), timestamps: truth("timestamps"), tail: -1}
	if lines, err := strconv.Atoi(query.Get("tailLines")); err == nil {
		asked.tail = lines
	}
	if secs, err := strconv.Atoi(query.Get("sinceSeconds")); err == nil {
		asked.since = time.Now().Add(-time.Duration(secs) * time.Second)
	}
	if since, err := time.Parse(time.RFC3339, query.Get("sinceTime")); err == nil {
		asked.since = since
	}
	asked.bytesMax, _ = strconv.ParseInt(query.Get("limitBytes"), 10, 64)
	it.worker.lock.Lock()
	begun := it.run
	it.worker.lock.Unlock()
	path := logPath(it.worker.folder, it.spec.Name, truth("previous"))
	if _, err := os.Stat(path); err != nil {
		http.Error(writer, fmt.Sprintf("container %q in pod %q is waiting to start, or has no such run", it.spec.Name, it.worker.name), http.StatusBadRequest)
		return
	}
	writer.Header().Set("Content-Type", "text/plain")
	_ = asked.read(path, flushing{writer}, func() bool {
		if request.Context().Err() != nil || begun == nil {
			return true
		}
		select {
		case <-begun.over:
			return true
		default:
			return false
		}
	})
}

// flushing sends what is written at once when told.
type flushing struct{ http.ResponseWriter }

func (writer flushing) Flush() { _ = http.NewResponseController(writer.ResponseWriter).Flush() }

func (node *Node) exec(writer http.ResponseWriter, request *http.Request) {
	it, found := node.target(writer, request)
	if !found {
		return
	}
	options, err := remotecommand.NewOptions(request)
	if err != nil {
		http.Error(writer, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeExec(writer, request, executor{it}, it.worker.name, "", it.spec.Name, request.URL.Query()["command"], options, idle, creation,
		remotecommand.SupportedStreamingProtocols)
}

// executor runs a command in one container. A terminal is not emulated: with `tty` the command still has pipes.
type executor struct{ it *container }

func (executor executor) ExecInContainer(ctx context.Context, _, _, _ string, command []string, in io.Reader, out, err io.WriteCloser, _ bool,
	_ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	executor.it.worker.lock.Lock()
	begun, state := executor.it.run, executor.it.state
	executor.it.worker.lock.Unlock()
	if state != order.Running && state != order.Starting || len(command) == 0 {
		return fmt.Errorf("container %s does not run, or no command was given", executor.it.spec.Name)
	}
	var stdout, stderr io.Writer = out, err
	if err == nil {
		stderr = stdout
	}
	code, failure := begun.process.Join(begun.spec, command, in, stdout, stderr, ctx.Done())
	if failure != nil {
		return failure
	}
	if code != 0 {
		return exec.CodeExitError{Err: fmt.Errorf("exit status %d", code), Code: code}
	}
	return nil
}

func (node *Node) portForward(writer http.ResponseWriter, request *http.Request) {
	worker := node.worker(request.PathValue("namespace"), request.PathValue("pod"))
	if worker == nil {
		http.Error(writer, fmt.Sprintf("pod %q is not on this node", request.PathValue("pod")), http.StatusNotFound)
		return
	}
	options, err := portforward.NewV4Options(request)
	if err != nil {
		http.Error(writer, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(writer, request, forwarder{worker}, worker.name, "", options, idle, creation, portforward.SupportedProtocols)
}

// forwarder carries streams to ports of a pod's loopback, as the kubelet does.
type forwarder struct{ *worker }

func (forwarder forwarder) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	var running *run
	forwarder.lock.Lock()
	for _, it := range forwarder.containers {
		if it.state == order.Running {
			running = it.run
		}
	}
	forwarder.lock.Unlock()
	if running == nil {
		return fmt.Errorf("pod %s has no running container", forwarder.name)
	}
	connection, err := running.process.Dial(net.JoinHostPort("localhost", strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	defer connection.Close()
	go func() {
		_, _ = io.Copy(connection, stream)
		_ = connection.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(stream, connection)
	return err
}

// worker of a pod by name.
func (node *Node) worker(namespace, name string) *worker {
	node.lock.Lock()
	defer node.lock.Unlock()
	var found *worker
	for _, worker := range node.workers {
		// A pod of the same name may still be ending.
		if worker.name == namespace+"/"+name && (found == nil || worker.born.After(found.born)) {
			found = worker
		}
	}
	return found
}
