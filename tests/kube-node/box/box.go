// Package box runs a container as a process: in a network namespace it is given, in mount, process and host name namespaces of its own,
// over a root file system that is the machine's own seen through an overlay, so that what it writes is its own and is gone with it.
//
// The program starts itself again as `enter` (a container) or `join` (a command in a running one); this package has both ends.
package box

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Mount binds a file or folder of the machine into the container.
type Mount struct {
	Source, Target string
	ReadOnly       bool
}

// User is who the container's processes are, and what they may.
type User struct {
	UID, GID int
	Groups   []int
	// Capabilities that remain possible (the bounding set), by their numbers. As in Kubernetes a user other than root has none in effect.
	Capabilities []int
	NoNewRights  bool
}

// Spec of one run of a container.
type Spec struct {
	Hostname string
	// Scratch is an empty folder on the machine; the container's own mounts begin there, seen by nobody else.
	Scratch string
	Mounts  []Mount
	// Files are written to the container's root: /etc/hosts and its like.
	Files map[string]string
	Argv  []string
	Env   []string
	Dir   string
	User  User
}

// Process is a started container.
type Process struct {
	command *exec.Cmd
	// Done is closed when it has ended; then Code is its exit code, 128 and the signal's number if one ended it.
	Done chan struct{}
	Code int
}

// again is the name by which the program knows that it was started by itself.
const again = "kube-node: a container"

// spawns is served by one thread that never ends: a parent-death signal is about the thread that forked.
var spawns = make(chan func())

func init() {
	go func() {
		runtime.LockOSThread()
		for spawn := range spawns {
			spawn()
		}
	}()
}

// spawn starts this program again with a task on descriptor 3 and further files behind it.
func spawn(command *exec.Cmd, task any, files ...*os.File) error {
	text, err := json.Marshal(task)
	if err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	command.Path = "/proc/self/exe"
	command.ExtraFiles = append([]*os.File{read}, files...)
	command.Env = []string{"GOMAXPROCS=1"}
	started := make(chan error)
	spawns <- func() { started <- command.Start() }
	err = <-started
	read.Close()
	if err == nil {
		_, err = write.Write(text)
	}
	write.Close()
	return err
}

// Start runs a container in a network namespace. It returns once the program has been executed, or why it could not be.
func Start(spec *Spec, netns *os.File, stdout, stderr *os.File) (*Process, error) {
	complaint, report, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer complaint.Close()
	command := &exec.Cmd{Args: []string{again, "enter"}, Stdout: stdout, Stderr: stderr}
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setsid:     true, Pdeathsig: syscall.SIGKILL,
	}
	err = spawn(command, spec, report, netns)
	report.Close()
	if command.Process == nil {
		return nil, fmt.Errorf("cannot start a process for the container: %w", err)
	}
	process := &Process{command: command, Done: make(chan struct{})}
	go func() {
		process.Code = code(command.Wait(), command)
		close(process.Done)
	}()
	text, _ := io.ReadAll(complaint)
	if len(text) > 0 {
		<-process.Done
		return nil, errors.New(string(text))
	}
	return process, nil
}

// Signal reaches the container's first process. As everywhere, one without a handler for it ignores it, SIGKILL apart.
func (process *Process) Signal(signal os.Signal) { _ = process.command.Process.Signal(signal) }

// joinTask is a command in a running container.
type joinTask struct {
	PID  int
	Argv []string
	Env  []string
	Dir  string
	User User
}

// Join runs a command in a running container, as `exec` does, and returns its exit code. When `stop` closes, it is killed.
func (process *Process) Join(spec *Spec, argv []string, in io.Reader, out, err io.Writer, stop <-chan struct{}) (int, error) {
	command := &exec.Cmd{Args: []string{again, "join"}, Stdin: in, Stdout: out, Stderr: err}
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	task := joinTask{process.command.Process.Pid, argv, spec.Env, spec.Dir, spec.User}
	if failure := spawn(command, task); failure != nil {
		return 0, fmt.Errorf("cannot start %s in the container: %w", argv[0], failure)
	}
	ended := make(chan struct{})
	go func() {
		select {
		case <-stop:
			_ = command.Process.Signal(syscall.SIGTERM)
		case <-ended:
		}
	}()
	failure := command.Wait()
	close(ended)
	return code(failure, command), nil
}

// Dial connects to an address as the container would.
func (process *Process) Dial(address string) (net.Conn, error) {
	netns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", process.command.Process.Pid))
	if err != nil {
		return nil, fmt.Errorf("the container has ended: %w", err)
	}
	defer netns.Close()
	var connection net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends in the container's network.
		runtime.LockOSThread()
		if err = unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err == nil {
			connection, err = net.DialTimeout("tcp", address, 5*time.Second)
		}
	}()
	<-done
	return connection, err
}

func code(err error, command *exec.Cmd) int {
	if err == nil {
		return 0
	}
	if status, is := command.ProcessState.Sys().(syscall.WaitStatus); is && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return command.ProcessState.ExitCode()
}

// capabilities by number.
var capabilities = strings.Fields("CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE " +
	"NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE " +
	"SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND " +
	"AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE")

// granted is what containerd gives a container that asks for nothing.
var granted = strings.Fields("CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE")

// Capabilities of a container: the usual ones, less those dropped, plus those added; all if it is privileged.
func Capabilities(add, drop []string, privileged bool) ([]int, error) {
	base := granted
	if privileged {
		base = capabilities
	}
	keep := map[string]bool{}
	set := func(names []string, value bool) error {
		for _, name := range names {
			name = strings.TrimPrefix(strings.ToUpper(name), "CAP_")
			switch {
			case name == "ALL":
				for _, name := range capabilities {
					keep[name] = value
				}
			case slices.Contains(capabilities, name):
				keep[name] = value
			default:
				return fmt.Errorf("unknown capability %q", name)
			}
		}
		return nil
	}
	_ = set(base, true)
	// ALL goes first on either side, so that one may drop all and add one.
	if slices.Contains(add, "ALL") {
		_ = set(capabilities, true)
	}
	if err := set(drop, false); err != nil {
		return nil, err
	}
	if err := set(slices.DeleteFunc(slices.Clone(add), func(name string) bool { return name == "ALL" }), true); err != nil {
		return nil, err
	}
	var numbers []int
	for number, name := range capabilities {
		if keep[name] {
			numbers = append(numbers, number)
		}
	}
	return numbers, nil
}
