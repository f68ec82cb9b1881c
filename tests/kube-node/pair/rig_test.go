//go:build pair

// Package pair proves the node and the API server of tests/kube-api together. It needs root, and both programs:
//
//	go test -tags pair ./pair -api /path/to/kube-api -node /path/to/kube-node
//
// All of it runs in a network namespace of its own, which ends with the test.
package pair

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

var (
	apiPath  = flag.String("api", "kube-api", "the API server's program")
	nodePath = flag.String("node", "kube-node", "the node's program")

	rig *cluster
)

// within is how long anything may take that a test waits for; on a quiet machine all of it takes a tenth.
const within = 60 * time.Second

// server answers with its own version, keeps on serving for a while after SIGTERM as a good citizen does, and says what it is told.
const server = `
import http.server, os, signal, sys, threading, time
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.split("?")[0]
        code = 200
        if path == "/switch": state[self.path.split("?")[1]] = not state.get(self.path.split("?")[1])
        elif path[1:] in state and state[path[1:]]: code = 500
        body = (os.environ.get("VERSION", "none") + "\n").encode()
        self.send_response(code); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *args): pass
state = {}
def end(*_): threading.Thread(target=lambda: (time.sleep(0.3), os._exit(0))).start()
signal.signal(signal.SIGTERM, end)
print("serving", flush=True)
http.server.ThreadingHTTPServer.address_family = __import__("socket").AF_INET6
http.server.ThreadingHTTPServer.request_queue_size = 128
http.server.ThreadingHTTPServer(("::", 8080), Answer).serve_forever()
`

type cluster struct {
	client kubernetes.Interface
	config *rest.Config

	lock   sync.Mutex
	events []event
}

// event is one line of the node's own account.
type event struct {
	Msg, Pod, Container string
	Time                time.Time
}

func TestMain(main *testing.M) {
	flag.Parse()
	if os.Getenv("KUBE_PAIR_INSIDE") == "" {
		// The whole test moves to a network of its own, so that the tests' clients are the node's neighbours.
		unshare, err := exec.LookPath("unshare")
		if err == nil {
			err = syscall.Exec(unshare, append([]string{"unshare", "--net", "--"}, os.Args...), append(os.Environ(), "KUBE_PAIR_INSIDE=1"))
		}
		fmt.Fprintln(os.Stderr, "cannot move to a network namespace (needs root):", err)
		os.Exit(1)
	}
	code, err := inside(main)
	if err != nil {
		fmt.Fprintln(os.Stderr, "the rig:", err)
		code = 1
	}
	os.Exit(code)
}

func inside(main *testing.M) (int, error) {
	folder, err := os.MkdirTemp("", "kube-pair-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(folder)
	if said, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return 1, fmt.Errorf("%w: %s", err, said)
	}
	table, _ := json.Marshal(map[string]any{
		"test/server": map[string]any{"entrypoint": []string{"python3", "-c", server}},
		"test/sh":     map[string]any{"entrypoint": []string{"sh", "-c"}, "env": map[string]string{"OF_IMAGE": "yes"}},
	})
	images := filepath.Join(folder, "images.json")
	if err := os.WriteFile(images, table, 0o644); err != nil {
		return 1, err
	}
	rig = &cluster{}
	api, err := rig.start(folder, "ready", *apiPath, "--dir", folder+"/api")
	if err != nil {
		return 1, err
	}
	defer api()
	kubeconfig := folder + "/api/kubeconfig"
	node, err := rig.start(folder, "node ready", *nodePath, "--kubeconfig", kubeconfig, "--controllers", "--node", "one", "--images", images,
		"--backoff", "1s", "--refresh", "1s")
	if err != nil {
		return 1, err
	}
	if rig.config, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return 1, err
	}
	rig.config.QPS, rig.config.Burst = 1000, 1000
	if rig.client, err = kubernetes.NewForConfig(rig.config); err != nil {
		return 1, err
	}
	code := main.Run()
	node()
	return code, leftovers()
}

// start runs one of the two programs until its line that says it is ready; what is returned ends it, by the end of its standard input.
func (rig *cluster) start(folder, ready, program string, args ...string) (func(), error) {
	command := exec.Command(program, args...)
	stdin, _ := command.StdinPipe()
	stdout, _ := command.StdoutPipe()
	log := filepath.Join(folder, filepath.Base(program)+".log")
	command.Stderr, _ = os.Create(log)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return nil, err
	}
	up := make(chan struct{})
	go func() {
		lines, once := bufio.NewScanner(stdout), sync.Once{}
		for lines.Scan() {
			if testing.Verbose() && strings.Contains(program, "node") {
				fmt.Println(lines.Text())
			}
			if strings.Contains(lines.Text(), `"`+ready+`"`) {
				once.Do(func() { close(up) })
			}
			its := event{}
			if json.Unmarshal(lines.Bytes(), &its) == nil {
				rig.lock.Lock()
				rig.events = append(rig.events, its)
				rig.lock.Unlock()
			}
		}
	}()
	select {
	case <-up:
	case <-time.After(within):
		said, _ := os.ReadFile(log)
		return nil, fmt.Errorf("%s does not become ready: %s", program, said)
	}
	return func() { stdin.Close(); command.Wait() }, nil
}

// leftovers of the node, after its end: no link, no rule, no process in this network namespace but this one.
func leftovers() error {
	links, _ := exec.Command("ip", "-brief", "link").Output()
	rules, _ := exec.Command("nft", "list", "tables").Output()
	if strings.Count(string(links), "\n") != 1 || len(rules) > 0 {
		return fmt.Errorf("left behind: %s%s", links, rules)
	}
	return nil
}

// apply makes objects from YAML in a namespace of the test's own.
func (rig *cluster) apply(t *testing.T, manifests string) string {
	t.Helper()
	asked := &core.Namespace{ObjectMeta: meta.ObjectMeta{GenerateName: strings.ToLower(strings.TrimPrefix(t.Name(), "Test")) + "-"}}
	made, err := rig.client.CoreV1().Namespaces().Create(t.Context(), asked, meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	namespace := made.Name
	t.Cleanup(func() {
		_ = rig.client.CoreV1().Namespaces().Delete(context.Background(), namespace, meta.DeleteOptions{})
	})
	reader := yaml.NewYAMLOrJSONDecoder(strings.NewReader(manifests), 4096)
	for {
		object := map[string]any{}
		if err := reader.Decode(&object); err == io.EOF {
			return namespace
		} else if err != nil {
			t.Fatal(err)
		}
		group, plural := "/api/v1", strings.ToLower(object["kind"].(string))+"s"
		if version := object["apiVersion"].(string); version != "v1" {
			group = "/apis/" + version
		}
		body, _ := json.Marshal(object)
		path := fmt.Sprintf("%s/namespaces/%s/%s", group, namespace, plural)
		if err := rig.client.CoreV1().RESTClient().Post().AbsPath(path).Body(body).Do(t.Context()).Error(); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
}

// until asks again and again, until the answer is empty; the last one says what is missing.
func until(t *testing.T, ask func() string) {
	t.Helper()
	missing := ""
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if missing = ask(); missing == "" {
			return
		}
	}
	t.Fatalf("after %s: %s", within, missing)
}

func (rig *cluster) pod(t *testing.T, namespace, name string) *core.Pod {
	t.Helper()
	pod, err := rig.client.CoreV1().Pods(namespace).Get(t.Context(), name, meta.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func (rig *cluster) awaitReady(t *testing.T, namespace, name string) *core.Pod {
	t.Helper()
	var pod *core.Pod
	until(t, func() string {
		pod = rig.pod(t, namespace, name)
		for _, condition := range pod.Status.Conditions {
			if condition.Type == core.PodReady && condition.Status == core.ConditionTrue {
				return ""
			}
		}
		text, _ := json.Marshal(pod.Status)
		return "not ready: " + string(text)
	})
	return pod
}

// story of a pod in the node's words: "started a, exited a, …".
func (rig *cluster) story(pod string, kinds ...string) string {
	rig.lock.Lock()
	defer rig.lock.Unlock()
	var words []string
	for _, it := range rig.events {
		for _, kind := range kinds {
			if it.Pod == pod && it.Msg == kind {
				words = append(words, kind+" "+it.Container)
			}
		}
	}
	return strings.Join(words, ", ")
}
