package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"

	"dev.meshwright/tests/kube-node/box"
	"dev.meshwright/tests/kube-node/order"
	"dev.meshwright/tests/kube-node/probe"
)

// container of a pod, over all its runs. Its fields are under the worker's lock.
type container struct {
	worker  *worker
	spec    *core.Container
	kind    order.Kind
	backoff order.Backoff

	state     order.State
	run       *run
	started   bool
	ready     bool
	doomed    bool
	stopping  bool
	code      int
	restarts  int32
	restartAt time.Time
	// waiting is why it does not run yet, if it is not merely its turn.
	waiting *core.ContainerStateWaiting
	ended   *core.ContainerStateTerminated
	// last is how the run before this one ended.
	last *core.ContainerStateTerminated
}

// run is one life of a container.
type run struct {
	id      string
	spec    *box.Spec
	process *box.Process
	began   time.Time
	// up is closed when the container has started (its startup probe has passed), over when it has ended.
	up, over chan struct{}
}

// start runs the container, again or for the first time. An error is one of the moment; what is wrong with the container itself ends up in
// its status, as an image or a reference that does not exist.
func (it *container) start(ctx context.Context) error {
	worker := it.worker
	image, err := lookUp(worker.node.options.Images, it.spec.Image)
	if err != nil {
		it.wait("ErrImagePull", err)
		return err
	}
	spec, err := it.box(ctx, image)
	if err != nil {
		it.wait("CreateContainerConfigError", err)
		return err
	}
	begun := &run{id: string(uuid.NewUUID()), spec: spec, began: time.Now(), up: make(chan struct{}), over: make(chan struct{})}
	output, err := worker.node.openLog(worker.folder, it.spec.Name)
	if err != nil {
		return err
	}
	stdout, err := output.pipe("stdout")
	if err != nil {
		return err
	}
	stderr, err := output.pipe("stderr")
	if err != nil {
		return err
	}
	process, err := box.Start(spec, worker.netns, stdout, stderr)
	stdout.Close()
	stderr.Close()
	worker.lock.Lock()
	defer worker.lock.Unlock()
	if it.state == order.Exited {
		it.restarts++
		it.last = it.ended
	}
	it.run, it.waiting, it.ended, it.doomed, it.stopping, it.started, it.ready = begun, nil, nil, false, false, false, false
	if err != nil {
		it.exited(128, "StartError", err.Error())
		return nil
	}
	worker.log("started", "container", it.spec.Name)
	begun.process = process
	it.state = order.Starting
	if it.spec.StartupProbe == nil {
		it.started = true
		close(begun.up)
	}
	go it.watch(begun)
	for _, kind := range []probe.Kind{probe.Startup, probe.Readiness, probe.Liveness} {
		if spec := map[probe.Kind]*core.Probe{probe.Startup: it.spec.StartupProbe, probe.Readiness: it.spec.ReadinessProbe, probe.Liveness: it.spec.LivenessProbe}[kind]; spec != nil {
			go it.probe(begun, kind, spec)
		}
	}
	if it.spec.Lifecycle == nil || it.spec.Lifecycle.PostStart == nil {
		it.state = order.Running
		return nil
	}
	go it.postStart(begun)
	return nil
}

func (it *container) postStart(begun *run) {
	message, passed := it.hook(begun, it.spec.Lifecycle.PostStart, time.Duration(1<<62), "postStart")
	it.worker.lock.Lock()
	if it.run == begun && it.state == order.Starting {
		it.state = order.Running
		it.doomed = it.doomed || !passed
	}
	it.worker.lock.Unlock()
	if !passed {
		it.worker.log("postStart hook failed", "container", it.spec.Name, "reason", message)
	}
	it.worker.kick()
}

// wait says why the container cannot run yet.
func (it *container) wait(reason string, err error) {
	it.worker.lock.Lock()
	defer it.worker.lock.Unlock()
	it.waiting = &core.ContainerStateWaiting{Reason: reason, Message: err.Error()}
}

// watch waits for the end of a run.
func (it *container) watch(begun *run) {
	<-begun.process.Done
	close(begun.over)
	worker := it.worker
	worker.lock.Lock()
	reason := "Completed"
	if begun.process.Code != 0 {
		reason = "Error"
	}
	it.exited(begun.process.Code, reason, "")
	worker.log("exited", "container", it.spec.Name, "code", begun.process.Code)
	worker.lock.Unlock()
	worker.kick()
}

// exited writes down the end of a run, under the lock.
func (it *container) exited(code int, reason, message string) {
	now := time.Now()
	it.state, it.code, it.started, it.ready = order.Exited, code, false, false
	it.restartAt = now.Add(it.backoff.After(now.Sub(it.run.began)))
	it.ended = &core.ContainerStateTerminated{
		ExitCode: int32(code), Reason: reason, Message: message, ContainerID: "box://" + it.run.id,
		StartedAt: meta.NewTime(it.run.began), FinishedAt: meta.NewTime(now),
	}
	if code > 128 && code < 160 {
		it.ended.Signal = int32(code - 128)
	}
}

// stop ends a run: preStop hook, SIGTERM in its turn, SIGKILL when the grace is over. The hook takes from the grace and does not wait for the
// turn, as in the kubelet.
func (it *container) stop(grace time.Duration, inTurn bool) {
	worker := it.worker
	worker.lock.Lock()
	running := (it.state == order.Running || it.state == order.Starting) && !it.stopping
	begun := it.run
	it.stopping = it.stopping || running
	worker.lock.Unlock()
	if !running {
		worker.kick()
		return
	}
	deadline := time.Now().Add(grace)
	if it.spec.Lifecycle != nil && it.spec.Lifecycle.PreStop != nil && grace > 0 {
		if message, passed := it.hook(begun, it.spec.Lifecycle.PreStop, grace, "preStop"); !passed {
			worker.log("preStop hook failed", "container", it.spec.Name, "reason", message)
		}
	}
	if inTurn {
		it.awaitTurn(begun, deadline)
	}
	worker.log("stops", "container", it.spec.Name)
	begun.process.Signal(syscall.SIGTERM)
	timer := time.NewTimer(max(time.Until(deadline), graceMin))
	defer timer.Stop()
	select {
	case <-begun.over:
	case <-timer.C:
		begun.process.Signal(syscall.SIGKILL)
	}
}

func (it *container) awaitTurn(begun *run, deadline time.Time) {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for {
		var ahead chan struct{}
		it.worker.lock.Lock()
		turn := order.Turn(it.worker.order, it.spec.Name, func(name string) bool {
			other := it.worker.find(name)
			runs := other.state == order.Running || other.state == order.Starting
			if runs {
				ahead = other.run.over
			}
			return runs
		})
		it.worker.lock.Unlock()
		if turn {
			return
		}
		select {
		case <-ahead:
			// Its end is written down a moment after it is known.
			time.Sleep(time.Millisecond)
		case <-begun.over:
			return
		case <-timer.C:
			return
		}
	}
}

// kill ends a run at once.
func (it *container) kill() {
	it.worker.lock.Lock()
	begun := it.run
	it.worker.lock.Unlock()
	if begun != nil && begun.process != nil {
		begun.process.Signal(syscall.SIGKILL)
		<-begun.process.Done
	}
}

// stopGrace of a container that is stopped alone: its failed probe's own, else the pod's.
func (worker *worker) stopGrace(it *container) time.Duration {
	grace := valueOr(worker.facts.pod.Spec.TerminationGracePeriodSeconds, 30)
	worker.lock.Lock()
	defer worker.lock.Unlock()
	for _, spec := range []*core.Probe{it.spec.LivenessProbe, it.spec.StartupProbe} {
		if spec != nil && spec.TerminationGracePeriodSeconds != nil && it.started == (spec == it.spec.LivenessProbe) {
			grace = *spec.TerminationGracePeriodSeconds
		}
	}
	return time.Duration(grace) * time.Second
}

// box is what is run for the container.
func (it *container) box(ctx context.Context, image *Image) (*box.Spec, error) {
	worker, pod := it.worker, it.worker.facts.pod
	env, err := worker.node.environment(ctx, worker.facts, it.spec, image)
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for _, entry := range env {
		name, value, _ := strings.Cut(entry, "=")
		values[name] = value
	}
	spec := &box.Spec{Hostname: hostname(pod), Env: env, Dir: "/", Files: worker.node.files(pod, worker.facts)}
	spec.Scratch = filepath.Join(worker.folder, "scratch", it.spec.Name)
	if err := os.MkdirAll(spec.Scratch, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the container's folder: %w", err)
	}
	for _, word := range image.argv(it.spec.Command, it.spec.Args) {
		spec.Argv = append(spec.Argv, expand(word, values))
	}
	if len(spec.Argv) == 0 {
		return nil, fmt.Errorf("no command specified")
	}
	for _, dir := range []string{image.WorkingDir, it.spec.WorkingDir} {
		if dir != "" {
			spec.Dir = dir
		}
	}
	for target, source := range image.Files {
		spec.Mounts = append(spec.Mounts, box.Mount{Source: source, Target: target, ReadOnly: true})
	}
	mounts, err := worker.volumes.mounts(it.spec, values)
	if err != nil {
		return nil, err
	}
	spec.Mounts = append(spec.Mounts, mounts...)
	spec.User, err = user(pod, it.spec, image)
	return spec, err
}

// user of a container: its own security context's before the pod's before the image's.
func user(pod *core.Pod, spec *core.Container, image *Image) (box.User, error) {
	whole, own := &core.PodSecurityContext{}, &core.SecurityContext{}
	if pod.Spec.SecurityContext != nil {
		whole = pod.Spec.SecurityContext
	}
	if spec.SecurityContext != nil {
		own = spec.SecurityContext
	}
	first := func(values ...*int64) int {
		for _, value := range values {
			if value != nil {
				return int(*value)
			}
		}
		return 0
	}
	user := box.User{UID: first(own.RunAsUser, whole.RunAsUser, &image.User), GID: first(own.RunAsGroup, whole.RunAsGroup)}
	if nonRoot := valueOr(own.RunAsNonRoot, valueOr(whole.RunAsNonRoot, false)); nonRoot && user.UID == 0 {
		return user, fmt.Errorf("container has runAsNonRoot and image will run as root")
	}
	if whole.FSGroup != nil {
		user.Groups = append(user.Groups, int(*whole.FSGroup))
	}
	for _, group := range whole.SupplementalGroups {
		user.Groups = append(user.Groups, int(group))
	}
	user.NoNewRights = own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation
	var add, drop []string
	if own.Capabilities != nil {
		for _, name := range own.Capabilities.Add {
			add = append(add, string(name))
		}
		for _, name := range own.Capabilities.Drop {
			drop = append(drop, string(name))
		}
	}
	var err error
	user.Capabilities, err = box.Capabilities(add, drop, valueOr(own.Privileged, false))
	return user, err
}

func hostname(pod *core.Pod) string {
	if pod.Spec.Hostname != "" {
		return pod.Spec.Hostname
	}
	return pod.Name[:min(len(pod.Name), 63)]
}
