//go:build pair

package pair

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
)

// Aim: a container has its variables, files, token, names, user and rights, `exec` answers with them, and changed ConfigMaps reach it.
func TestInside(t *testing.T) {
	namespace := rig.apply(t, `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: red, shape: round}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {word: abracadabra}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: inside}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: inside, labels: {app: inside}}
spec:
  hostname: host
  subdomain: db
  securityContext: {runAsUser: 1337, runAsGroup: 1338, fsGroup: 2000}
  volumes:
  - {name: settings, configMap: {name: settings, items: [{key: colour, path: of/colour}]}}
  - name: all
    projected:
      sources:
      - {serviceAccountToken: {audience: mesh, path: token, expirationSeconds: 600}}
      - {secret: {name: hidden}}
      - {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  containers:
  - name: app
    image: test/server
    workingDir: /var/of/nobody
    env:
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: WORD, valueFrom: {secretKeyRef: {name: hidden, key: word}}}
    - {name: BOTH, value: "$(POD)-$(WORD)-$$(POD)-$(NOT)"}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    envFrom: [{prefix: SET_, configMapRef: {name: settings}}]
    resources: {limits: {memory: 64Mi}}
    securityContext: {capabilities: {drop: [ALL], add: [NET_ADMIN]}, allowPrivilegeEscalation: false}
    volumeMounts: [{name: settings, mountPath: /settings}, {name: all, mountPath: /all, readOnly: true}]
`)
	pod := rig.awaitReady(t, namespace, "inside")
	run := func(script string) string {
		t.Helper()
		out, code := rig.exec(t, namespace, "inside", "app", "", "sh", "-c", script)
		if code != 0 {
			t.Errorf("%s: code %d", script, code)
		}
		return strings.TrimSpace(out)
	}
	dns := `import socket; print(socket.gethostbyname("host.db"))`
	for script, want := range map[string]string{
		"echo $POD $ADDRESS $WORD $BOTH $MEMORY $SET_shape":                    "inside " + pod.Status.PodIP + " abracadabra inside-abracadabra-$(POD)-$(NOT) 64 round",
		"id -u; id -g; id -G":                                                  "1337\n1338\n1338 2000",
		"pwd; hostname; cat /settings/of/colour; cat /all/labels":              "/var/of/nobody\nhost\nredapp=\"inside\"",
		"grep CapBnd /proc/self/status; touch /all/x 2>&1 | grep -o Read-only": "CapBnd:\t0000000000001000\nRead-only",
		"stat -L -c %a:%u:%g /all/token /all/word":                             "640:1337:2000\n644:0:2000",
		"python3 -c '" + dns + "'":                                             pod.Status.PodIP,
		"cat /proc/1/comm; ls /proc | grep -c '^[0-9]' | grep -c '^[3-9]$'":    "python3\n1",
		"cat; echo $KUBERNETES_SERVICE_HOST":                                   "10.96.0.1",
	} {
		if got := run(script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	token := strings.Split(run("cat /all/token"), ".")
	if len(token) != 3 {
		t.Fatal("no token")
	}
	claims, _ := base64.RawURLEncoding.DecodeString(token[1])
	if !strings.Contains(string(claims), `"mesh"`) || !strings.Contains(string(claims), string(pod.UID)) {
		t.Errorf("claims %s", claims)
	}
	if out, code := rig.exec(t, namespace, "inside", "app", "told", "sh", "-c", "cat; echo wrong >&2; exit 7"); code != 7 || out != "toldwrong\n" {
		t.Errorf("exec: %q, code %d", out, code)
	}
	authority := "/var/run/secrets/kubernetes.io/serviceaccount"
	version := run(`python3 -c 'import ssl, urllib.request as u
c = ssl.create_default_context(cafile="` + authority + `/ca.crt")
print(u.urlopen(u.Request("https://kubernetes.default.svc/api/v1/namespaces/` + namespace + `/pods/inside",
  headers={"Authorization": "Bearer " + open("` + authority + `/token").read()}), context=c).status)'`)
	if version != "200" {
		t.Errorf("the API server from inside: %s", version)
	}
	patch := []byte(`{"data":{"colour":"blue"}}`)
	if _, err := rig.client.CoreV1().ConfigMaps(namespace).Patch(t.Context(), "settings", types.MergePatchType, patch, meta.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, func() string {
		if got := run("cat /settings/of/colour"); got != "blue" {
			return got
		}
		return ""
	})
}

// Aim: a port of a pod's own loopback is reached through the API server, as by `kubectl port-forward`.
func TestPortForward(t *testing.T) {
	namespace := rig.apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: inner}
spec:
  containers:
  - name: app
    image: test/sh
    args: ["exec python3 -m http.server --bind 127.0.0.1 --directory /usr/share 9000"]
    readinessProbe: {exec: {command: [python3, -c, "import socket; socket.create_connection(('127.0.0.1', 9000))"]}, periodSeconds: 1, timeoutSeconds: 5}
`)
	rig.awaitReady(t, namespace, "inner")
	request := rig.client.CoreV1().RESTClient().Post().Namespace(namespace).Resource("pods").Name("inner").SubResource("portforward")
	transport, upgrader, err := spdy.RoundTripperFor(rig.config)
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	defer close(stop)
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", request.URL())
	forward, err := portforward.New(dialer, []string{"0:9000"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	go forward.ForwardPorts()
	select {
	case <-ready:
	case <-time.After(within):
		t.Fatal("nothing is forwarded")
	}
	ports, _ := forward.GetPorts()
	if body, err := get(fmt.Sprintf("http://127.0.0.1:%d/", ports[0].Local)); err != nil || !strings.Contains(body, "Directory listing") {
		t.Errorf("%v %q", err, body)
	}
}

// exec runs a command in a container as kubectl does, and returns what it said and its exit code.
func (rig *cluster) exec(t *testing.T, namespace, pod, container, in string, command ...string) (string, int) {
	t.Helper()
	request := rig.client.CoreV1().RESTClient().Post().Namespace(namespace).Resource("pods").Name(pod).SubResource("exec")
	request.VersionedParams(&core.PodExecOptions{Container: container, Command: command, Stdin: true, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewSPDYExecutor(rig.config, "POST", request.URL())
	if err != nil {
		t.Fatal(err)
	}
	var out, wrong bytes.Buffer
	err = executor.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader(in), Stdout: &out, Stderr: &wrong})
	var exit interface{ ExitStatus() int }
	switch {
	case err == nil:
		return out.String() + wrong.String(), 0
	case as(err, &exit):
		return out.String() + wrong.String(), exit.ExitStatus()
	}
	t.Fatalf("exec: %v", err)
	return "", 0
}

func as(err error, exit *interface{ ExitStatus() int }) bool {
	its, is := err.(interface{ ExitStatus() int })
	*exit = its
	return is
}
