//go:build pair

package pair

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	failure "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: app
        image: test/server:1
        env: [{name: VERSION, value: one}]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1}
        lifecycle: {preStop: {sleep: {seconds: 1}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
`

// Aim: a rolling update keeps its bounds, is reported as by Kubernetes, and no request of a plain client to the Service fails meanwhile.
func TestRollingUpdate(t *testing.T) {
	namespace := rig.apply(t, deployment)
	complete := func() string {
		it, err := rig.client.AppsV1().Deployments(namespace).Get(t.Context(), "web", meta.GetOptions{})
		if err != nil {
			return err.Error()
		}
		status := it.Status
		if status.ObservedGeneration != it.Generation || status.UpdatedReplicas != 3 || status.Replicas != 3 || status.AvailableReplicas != 3 {
			return fmt.Sprintf("%+v", status)
		}
		return ""
	}
	until(t, complete)
	service, err := rig.client.CoreV1().Services(namespace).Get(t.Context(), "web", meta.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	url := "http://" + service.Spec.ClusterIP + "/"
	until(t, func() string {
		if _, err := get(url); err != nil {
			return err.Error()
		}
		return ""
	})
	answers, failed := map[string]int{}, []string{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			answer, err := get(url)
			if err != nil {
				failed = append(failed, err.Error())
			}
			answers[answer]++
		}
	}()
	most := atomic.Int32{}
	go func() {
		for ctx.Err() == nil {
			sets, err := rig.client.AppsV1().ReplicaSets(namespace).List(ctx, meta.ListOptions{})
			if err == nil {
				sum := int32(0)
				for _, set := range sets.Items {
					sum += *set.Spec.Replicas
				}
				most.Store(max(most.Load(), sum))
			}
		}
	}()
	patch := `{"spec":{"template":{"spec":{"containers":[{"name":"app","env":[{"name":"VERSION","value":"two"}]}]}}}}`
	if _, err := rig.client.AppsV1().Deployments(namespace).Patch(ctx, "web", types.StrategicMergePatchType, []byte(patch), meta.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, complete)
	// Until the last old pod is gone.
	until(t, func() string {
		pods, err := rig.client.CoreV1().Pods(namespace).List(ctx, meta.ListOptions{})
		if err != nil || len(pods.Items) != 3 {
			return fmt.Sprint(err, len(pods.Items), " pods")
		}
		return ""
	})
	cancel()
	<-done
	if len(failed) > 0 || answers["one\n"] == 0 || answers["two\n"] == 0 {
		t.Errorf("answers %v, failed %d: %v", answers, len(failed), failed[:min(len(failed), 3)])
	}
	if most.Load() != 4 {
		t.Errorf("ReplicaSets asked for %d pods at once, not 4", most.Load())
	}
	t.Logf("answers during the update: %v", answers)
}

// Aim: endpoints say what a pod is: ready with its node's zone, then terminating and still serving, then gone.
func TestEndpoints(t *testing.T) {
	namespace := rig.apply(t, deployment)
	said := func() string {
		slices, err := rig.client.DiscoveryV1().EndpointSlices(namespace).List(t.Context(), meta.ListOptions{LabelSelector: "kubernetes.io/service-name=web"})
		if err != nil {
			return err.Error()
		}
		counts := map[string]int{}
		for _, slice := range slices.Items {
			for _, endpoint := range slice.Endpoints {
				is := endpoint.Conditions
				counts[fmt.Sprintf("ready=%v serving=%v terminating=%v %s %s", *is.Ready, *is.Serving, *is.Terminating, *endpoint.Zone, endpoint.TargetRef.Kind)]++
			}
		}
		return fmt.Sprint(counts)
	}
	await := func(want string) {
		t.Helper()
		until(t, func() string {
			if got := said(); got != want {
				return got
			}
			return ""
		})
	}
	await("map[ready=true serving=true terminating=false here-1 Pod:3]")
	pods, _ := rig.client.CoreV1().Pods(namespace).List(t.Context(), meta.ListOptions{})
	// Neighbours reach one another in both families.
	for _, host := range []string{pods.Items[1].Status.PodIP, "[" + pods.Items[1].Status.PodIPs[1].IP + "]", pods.Items[0].Status.PodIP} {
		script := fmt.Sprintf("import urllib.request as u; print(u.urlopen('http://%s:8080/', timeout=10).status)", host)
		if out, code := rig.exec(t, namespace, pods.Items[0].Name, "app", "", "python3", "-c", script); code != 0 || out != "200\n" {
			t.Errorf("%s: %d %s", host, code, out)
		}
	}
	if _, err := get("http://" + pods.Items[0].Status.PodIP + ":8080/switch?ready"); err != nil {
		t.Fatal(err)
	}
	await("map[ready=false serving=false terminating=false here-1 Pod:1 ready=true serving=true terminating=false here-1 Pod:2]")
	none := []byte(`{"spec":{"replicas":1}}`)
	if _, err := rig.client.AppsV1().Deployments(namespace).Patch(t.Context(), "web", types.MergePatchType, none, meta.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	// The unready one went first, a ready one too: it still serves while it ends.
	until(t, func() string {
		if got := said(); !strings.Contains(got, "ready=false serving=true terminating=true here-1 Pod:1") {
			return got
		}
		return ""
	})
	await("map[ready=true serving=true terminating=false here-1 Pod:1]")
	until(t, func() string {
		left, err := rig.client.CoreV1().Pods(namespace).List(t.Context(), meta.ListOptions{})
		if err != nil || len(left.Items) != 1 {
			return fmt.Sprint(err, len(left.Items), " pods")
		}
		out, _ := rig.exec(t, namespace, left.Items[0].Name, "app", "", "python3", "-c", "import urllib.request as u; print(u.urlopen('http://web/', timeout=10).status)")
		return strings.TrimPrefix(out, "200\n")
	})
}

// Aim: init containers run one after another, a sidecar is passed once its startup probe has passed, and sidecars end last, in reverse.
func TestOrder(t *testing.T) {
	namespace := rig.apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: ordered}
spec:
  terminationGracePeriodSeconds: 20
  volumes: [{name: shared, emptyDir: {}}]
  initContainers:
  - {name: first, image: test/sh, args: ["date > /shared/first"], volumeMounts: [{name: shared, mountPath: /shared}]}
  - name: proxy
    image: test/sh
    restartPolicy: Always
    args: ["trap 'exit 0' TERM; test -e /shared/first || exit 1; sleep 1.5; touch /shared/up; while :; do sleep 0.1; done"]
    startupProbe: {exec: {command: [test, -e, /shared/up]}, periodSeconds: 1, failureThreshold: 30}
    volumeMounts: [{name: shared, mountPath: /shared}]
  - {name: second, image: test/sh, args: ["test -e /shared/up"], volumeMounts: [{name: shared, mountPath: /shared}]}
  - name: logger
    image: test/sh
    restartPolicy: Always
    args: ["trap 'exit 0' TERM; touch /tmp/up; while :; do sleep 0.1; done"]
    startupProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1, failureThreshold: 30}
  containers:
  - name: app
    image: test/sh
    args: ["trap 'sleep 0.5; exit 0' TERM; touch /tmp/up; while :; do sleep 0.1; done"]
    readinessProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1}
`)
	rig.awaitReady(t, namespace, "ordered")
	pod := namespace + "/ordered"
	want := "started first, exited first, started proxy, started second, exited second, started logger, started app"
	if got := rig.story(pod, "started", "exited"); got != want {
		t.Errorf("the pod began with: %s\nwant: %s", got, want)
	}
	if err := rig.client.CoreV1().Pods(namespace).Delete(t.Context(), "ordered", meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if pod := rig.pod(t, namespace, "ordered"); pod.DeletionTimestamp == nil || *pod.DeletionGracePeriodSeconds != 20 {
		t.Errorf("a pod that ends: %v", pod.DeletionTimestamp)
	}
	until(t, func() string {
		_, err := rig.client.CoreV1().Pods(namespace).Get(t.Context(), "ordered", meta.GetOptions{})
		if failure.IsNotFound(err) {
			return ""
		}
		return "the pod is still there"
	})
	if got, want := rig.story(pod, "stops"), "stops app, stops logger, stops proxy"; got != want {
		t.Errorf("the pod ended with: %s\nwant: %s", got, want)
	}
	if got, want := rig.story(pod, "exited"), "exited first, exited second, exited app, exited logger, exited proxy"; got != want {
		t.Errorf("ends: %s\nwant: %s", got, want)
	}
}

// Aim: a Job is complete when its own container has succeeded, although a sidecar runs; the sidecar is stopped then.
func TestJob(t *testing.T) {
	namespace := rig.apply(t, `
apiVersion: batch/v1
kind: Job
metadata: {name: work}
spec:
  completions: 2
  template:
    spec:
      restartPolicy: Never
      initContainers:
      - name: proxy
        image: test/sh
        restartPolicy: Always
        args: ["trap 'exit 3' TERM; touch /tmp/up; while :; do sleep 0.1; done"]
        startupProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1, failureThreshold: 30}
      containers:
      - {name: main, image: test/sh, args: ["echo worked; sleep 0.2"]}
`)
	until(t, func() string {
		job, err := rig.client.BatchV1().Jobs(namespace).Get(t.Context(), "work", meta.GetOptions{})
		if err != nil {
			return err.Error()
		}
		for _, condition := range job.Status.Conditions {
			if condition.Type == batch.JobComplete && condition.Status == core.ConditionTrue && job.Status.Succeeded == 2 {
				return ""
			}
		}
		return fmt.Sprintf("%+v", job.Status)
	})
	pods, _ := rig.client.CoreV1().Pods(namespace).List(t.Context(), meta.ListOptions{LabelSelector: "batch.kubernetes.io/job-name=work"})
	if len(pods.Items) != 2 {
		t.Fatalf("%d pods", len(pods.Items))
	}
	for _, pod := range pods.Items {
		sidecar := pod.Status.InitContainerStatuses[0].State.Terminated
		if pod.Status.Phase != core.PodSucceeded || sidecar == nil || sidecar.ExitCode != 3 {
			t.Errorf("phase %s, sidecar %+v", pod.Status.Phase, sidecar)
		}
		text, err := rig.client.CoreV1().Pods(namespace).GetLogs(pod.Name, &core.PodLogOptions{Container: "main"}).DoRaw(t.Context())
		if err != nil || string(text) != "worked\n" {
			t.Errorf("log %q %v", text, err)
		}
	}
}

// Aim: probes do what they do on a kubelet: startup holds the others, readiness takes a pod out and in, liveness restarts the container.
func TestProbes(t *testing.T) {
	namespace := rig.apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  containers:
  - name: app
    image: test/server
    ports: [{name: web, containerPort: 8080}]
    startupProbe: {tcpSocket: {port: web}, periodSeconds: 1, failureThreshold: 30}
    readinessProbe: {httpGet: {path: /ready, port: web, httpHeaders: [{name: Host, value: probe.test}]}, periodSeconds: 1, failureThreshold: 1}
    livenessProbe: {httpGet: {path: /alive, port: 8080}, periodSeconds: 1, failureThreshold: 2, terminationGracePeriodSeconds: 5}
`)
	address := rig.awaitReady(t, namespace, "probed").Status.PodIP
	turn := func(what string) {
		t.Helper()
		if _, err := get("http://" + address + ":8080/switch?" + what); err != nil {
			t.Fatal(err)
		}
	}
	ready := func(want bool, restarts int32) func() string {
		return func() string {
			status := rig.pod(t, namespace, "probed").Status.ContainerStatuses[0]
			if status.Ready != want || status.RestartCount != restarts {
				return fmt.Sprintf("%+v", status)
			}
			return ""
		}
	}
	turn("ready")
	until(t, ready(false, 0))
	turn("ready")
	until(t, ready(true, 0))
	turn("alive")
	until(t, ready(true, 1))
	last := rig.pod(t, namespace, "probed").Status.ContainerStatuses[0].LastTerminationState.Terminated
	if last == nil || last.ExitCode != 0 {
		t.Errorf("the run before: %+v", last)
	}
	previous, err := rig.client.CoreV1().Pods(namespace).GetLogs("probed", &core.PodLogOptions{Previous: true}).DoRaw(t.Context())
	if err != nil || string(previous) != "serving\n" {
		t.Errorf("previous log %q %v", previous, err)
	}
}

// Aim: what cannot run says so where a user looks: an unknown image, a missing key, a program that is not there.
func TestTrouble(t *testing.T) {
	namespace := rig.apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: image}
spec: {containers: [{name: app, image: "no/such:1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: key}
spec: {containers: [{name: app, image: test/sh, env: [{name: A, valueFrom: {configMapKeyRef: {name: none, key: a}}}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: program}
spec: {restartPolicy: Never, containers: [{name: app, image: test/sh, command: [no-such-program]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: volume}
spec: {volumes: [{name: v, hostPath: {path: /etc}}], containers: [{name: app, image: test/sh, args: [sleep 100]}]}
`)
	for name, want := range map[string]string{
		"image": `ErrImagePull: image "no/such:1" is not in the table`, "key": `CreateContainerConfigError: configmaps "none" not found`,
		"program": `StartError: exec: "no-such-program": executable file not found`, "volume": "this kind of volume is not emulated",
	} {
		until(t, func() string {
			status := rig.pod(t, namespace, name).Status
			text := ""
			for _, its := range status.ContainerStatuses {
				if waiting := its.State.Waiting; waiting != nil {
					text += waiting.Reason + ": " + waiting.Message
				}
				if ended := its.State.Terminated; ended != nil {
					text += ended.Reason + ": " + ended.Message
				}
			}
			for _, condition := range status.Conditions {
				text += condition.Message
			}
			if !strings.Contains(text, want) {
				return text
			}
			return ""
		})
	}
}

// Aim: StatefulSets make their pods in order with stable names, DaemonSets one per node.
func TestSets(t *testing.T) {
	set := `
apiVersion: apps/v1
kind: %s
metadata: {name: %s}
spec:
  selector: {matchLabels: {app: %s}}
  template:
    metadata: {labels: {app: %s}}
    spec: {containers: [{name: app, image: test/server}]}
`
	stateful := strings.Replace(fmt.Sprintf(set, "StatefulSet", "db", "db", "db"), "spec:\n", "spec:\n  replicas: 2\n  serviceName: db\n", 1)
	namespace := rig.apply(t, stateful+"---"+fmt.Sprintf(set, "DaemonSet", "agent", "agent", "agent"))
	until(t, func() string {
		db, err := rig.client.AppsV1().StatefulSets(namespace).Get(t.Context(), "db", meta.GetOptions{})
		if err != nil || db.Status.ReadyReplicas != 2 || db.Status.CurrentRevision != db.Status.UpdateRevision {
			return fmt.Sprint(err, db.Status)
		}
		agent, err := rig.client.AppsV1().DaemonSets(namespace).Get(t.Context(), "agent", meta.GetOptions{})
		if err != nil || agent.Status.NumberReady != 1 || agent.Status.DesiredNumberScheduled != 1 {
			return fmt.Sprint(err, agent.Status)
		}
		return ""
	})
	first, second := rig.pod(t, namespace, "db-0"), rig.pod(t, namespace, "db-1")
	if first.Spec.Hostname != "db-0" || second.Labels[apps.PodIndexLabel] != "1" {
		t.Errorf("%s %v", first.Spec.Hostname, second.Labels)
	}
	rig.lock.Lock()
	defer rig.lock.Unlock()
	at := map[string]time.Time{}
	for _, it := range rig.events {
		if it.Msg == "started" {
			at[it.Pod] = it.Time
		}
	}
	if !at[namespace+"/db-0"].Before(at[namespace+"/db-1"]) {
		t.Error("not in order")
	}
}

// Aim: a pod that is deleted at once is gone from the API and its processes end too.
func TestForce(t *testing.T) {
	namespace := rig.apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: stubborn}
spec: {containers: [{name: app, image: test/sh, args: ["trap '' TERM; echo $$; while :; do sleep 0.1; done"]}]}
`)
	rig.awaitReady(t, namespace, "stubborn")
	now := int64(0)
	if err := rig.client.CoreV1().Pods(namespace).Delete(t.Context(), "stubborn", meta.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
	until(t, func() string {
		if got := rig.story(namespace+"/stubborn", "exited"); got != "exited app" {
			return "it still runs"
		}
		return ""
	})
}

func get(url string) (string, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", response.StatusCode)
	}
	return string(body), err
}
